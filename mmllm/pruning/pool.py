"""Neighbouring patches of a video's frames as one token, as LLaVA-NeXT-Video pools them before the projector.

B videos, T frames, H W patch grid, D width, S stride
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from einops import rearrange, reduce

from mmllm.errors import ConfigError, InputError
from mmllm.fields import require
from mmllm.interfaces import Grid, Groups, Origin, TokenReducer
from mmllm.registry import register
from mmllm.tokens import VisualTokens

_NEAR = 0.3
"""A stride stands for a share of tokens that is at most this fraction of it away."""


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """LLaVA-NeXT-Video's `spatial_pool_mode` and `spatial_pool_stride`."""

    stride: int = 2
    """Side, in patches, of the squares that become one token."""
    mode: Literal["average", "max"] = "average"
    """How the patches of a square become one token."""

    def __post_init__(self) -> None:
        require(self.stride >= 1, self, "stride", "at least 1")


@register("reducer", "pool", config=PoolConfig)
class PoolReducer(TokenReducer):
    """Squares of patches become one token of a smaller grid, in videos; images in tiles stay whole."""

    origin = Origin(
        original="LLaVA-NeXT-Video, in transformers",
        compared_with="transformers",
        equal="torch's own pooling; logits of whole models, <= 1e-4",
    )
    layout = "grid"

    def __init__(self, config: PoolConfig) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def settings_at(cls, share: float, *, tokens: int, layers: int) -> dict[str, Any] | None:
        """The stride whose squares come nearest to the share, on a square grid; None if none is near."""
        side, stride = math.isqrt(tokens), max(1, round(share**-0.5))
        kept = (side // stride) ** 2 / max(tokens, 1)
        return {"stride": stride} if abs(kept - share) <= _NEAR * share else None

    @property
    def by_frame(self) -> bool:
        """True."""
        return True

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """B T (H/S W/S) of B T (H W) tokens; rows and columns that do not fill a square are left out.

        Masked patches do not count; a square without any other patch is masked.

        Raises:
            InputError: for 1D tokens, or a grid smaller than the stride.
        """
        stride = self.config.stride
        if tokens.tiling is not None or stride == 1:
            return tokens
        if tokens.grid is None or min(tokens.grid) < stride:
            raise InputError(f"pool needs a patch grid of at least {stride}x{stride}, not {tokens.grid}")
        h, w = (side // stride for side in tokens.grid)
        features, present = tokens.on_grid()  # B T H W D, B T H W
        features, present = features[:, :, : h * stride, : w * stride], present[:, :, : h * stride, : w * stride]
        cells = rearrange(features, "b t (h i) (w j) d -> b t (h w) (i j) d", i=stride, j=stride)
        present = rearrange(present, "b t (h i) (w j) -> b t (h w) (i j)", i=stride, j=stride)
        if self.config.mode == "max":
            pooled = cells.masked_fill(~present.unsqueeze(-1), -torch.inf).amax(-2)
            pooled = pooled.masked_fill(~present.any(-1, keepdim=True), 0.0)
        elif bool(present.all()):
            pooled = reduce(cells, "b t n s d -> b t n d", "mean")
        else:
            weight = present.unsqueeze(-1).to(cells.dtype)
            pooled = (cells * weight).sum(-2) / weight.sum(-2).clamp(min=1)
        return VisualTokens(features=pooled, grid=(h, w), mask=present.any(-1), **tokens.about_frames)

    def groups(self, tokens: VisualTokens) -> Groups | None:
        """The squares, whose patches count alike; None where patches stay as they are.

        Raises:
            ConfigError: for `mode=max`, which is no weighted sum.
        """
        stride = self.config.stride
        if tokens.tiling is not None or stride == 1 or tokens.grid is None:
            return None
        if self.config.mode == "max":
            raise ConfigError("pool:mode=max is no weighted sum of tokens: use mode=average")
        h, w = (side // stride for side in tokens.grid)
        y, x = (
            tokens.index.div(tokens.grid[1], rounding_mode="floor") // stride,
            tokens.index % tokens.grid[1] // stride,
        )
        outside = (y >= h) | (x >= w) | ~tokens.mask
        owner = (y * w + x).masked_fill(outside, h * w)
        count = torch.zeros(*owner.shape[:2], h * w + 1, device=owner.device).scatter_add(
            2, owner, torch.ones_like(owner, dtype=torch.float32)
        )
        return Groups(owner=owner.masked_fill(outside, -1), weight=1 / count.gather(2, owner))

    def kept_tokens(self, tokens_per_frame: int, frames: int) -> int:
        """The most tokens that remain of a whole video."""
        return frames * (tokens_per_frame // self.config.stride**2)

    def counts_by_shape(self, tokens_per_frame: int, frames: int, grid: Grid) -> list[int] | None:
        """The whole squares of each frame; None if patches of the grid have gone before."""
        smaller = self.grid_after(grid)
        if grid is None or smaller is None or math.prod(grid) != tokens_per_frame:
            return None
        return [math.prod(smaller)] * frames

    def grid_after(self, grid: Grid) -> Grid:
        """Rows and columns of squares."""
        return None if grid is None else (grid[0] // self.config.stride, grid[1] // self.config.stride)
