"""LITA's SlowFast visual tokens: every frame as one fast token, a few frames as many slow tokens.

    frames  0 . . . . 33 . . . . 66 . . . . 99        T frames, each an H x W grid of patches
    fast    o o o o o o o o o o o o o o o o o o       T tokens: the mean over each frame's patches
    slow    ####      ####       ####       ####      s*s frames, each pooled s x s -> H*W tokens in all

B videos, T frames, N tokens of a frame, H W patch grid, D LLM width, S slow frames, L tokens of the sequence
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from einops import rearrange, reduce, repeat
from torch import Tensor

from mmllm.errors import InputError
from mmllm.fields import require
from mmllm.interfaces import Grid, VideoPath
from mmllm.registry import register
from mmllm.tokens import VisualSequence, VisualTokens

Mode = Literal["temporal", "spatial", "temporal_spatial", "spatial_pool", "temporal_spatial_pool"]


@dataclass(frozen=True, kw_only=True)
class SlowFastConfig:
    """LITA (ECCV 2024), section 3.2; `mode` takes the values of the released `video_arch`."""

    mode: Mode = "temporal_spatial_pool"
    """temporal: fast tokens. spatial: the mean over time of each patch. spatial_pool: slow tokens.
    temporal_spatial and temporal_spatial_pool: fast tokens, then the others."""
    pool: int = 2
    """Slow tokens are pool x pool averages on pool * pool frames; so there are as many as patches of one frame."""
    image_frames: int = 100
    """A still image becomes a video of this many equal frames, as published."""

    def __post_init__(self) -> None:
        require(self.pool >= 1, self, "pool", "at least 1")
        require(self.image_frames >= 1, self, "image_frames", "at least 1")


def slow_frames(num_frames: int, count: int) -> list[int]:
    """Indices of `count` frames spread evenly over `num_frames`, both ends included, rounded half to even."""
    if num_frames < 1:
        raise InputError(f"slow frames need a video of at least 1 frame, not {num_frames}")
    return np.round(np.linspace(0, num_frames - 1, count)).astype(int).tolist()


@register("path", "slowfast", config=SlowFastConfig)
class SlowFastPath(VideoPath):
    """LITA's SlowFast tokens: one fast token a frame, and slow tokens of a few frames."""

    averages = True

    def __init__(self, config: SlowFastConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, tokens: VisualTokens) -> VisualSequence:
        """Sequence of `fast` and `slow` blocks (LITA section 3.2). An average over masked tokens only is masked.

        Args:
            tokens: features B T N D, whole or reduced. `spatial` and the pooled modes need the patch grid.

        Raises:
            InputError: if the grid is not divisible by `pool`, the mode needs a grid and the tokens are 1D, an image
                was cut into tiles, or a video has no token that is not masked.
        """
        if tokens.tiling is not None:
            raise InputError("slowfast reads frames of a video, not tiles of an image: use the anyres or plain path")
        if tokens.shape[1] == 1 and self.config.image_frames > 1:
            tokens = _as_still_video(tokens, self.config.image_frames)
        mode = self.config.mode
        blocks: list[tuple[str, Tensor, Tensor, Tensor]] = []
        if mode.startswith("temporal"):
            blocks.append(("fast", *_fast(tokens)))
        if mode.endswith("spatial"):
            blocks.append(("slow", *_spatial(tokens)))
        if mode.endswith("pool"):
            blocks.append(("slow", *_slow(tokens, self.config.pool)))
        return VisualSequence(
            embeddings=torch.cat([features for _, features, _, _ in blocks], dim=1),
            mask=torch.cat([mask for _, _, mask, _ in blocks], dim=1),
            frame=torch.cat([frame for _, _, _, frame in blocks], dim=1),
            blocks=tuple((name, features.shape[1]) for name, features, _, _ in blocks),
        )

    def token_counts(self, frames: int, grid: Grid, tokens_per_frame: int) -> dict[str, int]:
        """The number of tokens of each block, masked ones included, for a video of `frames` frames."""
        mode = self.config.mode
        counts = {"fast": frames} if mode.startswith("temporal") else {}
        if mode != "temporal":
            height, width = _require_grid(grid)
            counts["slow"] = height * width
        return counts


def _require_grid(grid: tuple[int, int] | None) -> tuple[int, int]:
    if grid is None:
        raise InputError("1D tokens have no patch grid: use mode=temporal")
    return grid


def _as_still_video(tokens: VisualTokens, frames: int) -> VisualTokens:
    """The tokens of one frame (B 1 N D) repeated as `frames` frames."""

    def repeated(x: Tensor) -> Tensor:
        return x.expand(x.shape[0], frames, *x.shape[2:])

    return VisualTokens(
        features=repeated(tokens.features),
        grid=tokens.grid,
        index=repeated(tokens.index),
        mask=repeated(tokens.mask),
        question=tokens.question,
    )


def _masked_mean(features: Tensor, mask: Tensor, axes: str) -> tuple[Tensor, Tensor]:
    """Mean of the tokens that are not masked, over the axes that the einops pattern `axes` removes; and its mask."""
    weight = mask.to(features.dtype).unsqueeze(-1)
    count = reduce(weight, axes, "sum")
    mean = reduce(features * weight, axes, "sum") / count.clamp(min=1)
    return mean, count.squeeze(-1) > 0


def _fast(tokens: VisualTokens) -> tuple[Tensor, Tensor, Tensor]:
    """Fast tokens B T D, their mask B T, and the frame of each B T."""
    if tokens.complete:
        features, mask = reduce(tokens.features, "b t n d -> b t d", "mean"), tokens.frame_mask
    else:
        features, mask = _masked_mean(tokens.features, tokens.mask, "b t n d -> b t d")  # B T D
    b, t = mask.shape
    return features, mask, torch.arange(t, device=mask.device).expand(b, t)


def _spatial(tokens: VisualTokens) -> tuple[Tensor, Tensor, Tensor]:
    """Means over time B (H W) D, their mask, and their frame: -1, since they belong to no single frame."""
    features, present = tokens.on_grid()
    if tokens.complete:
        features, mask = reduce(features, "b t h w d -> b (h w) d", "mean"), present.any(1).flatten(1)
    else:
        features, mask = _masked_mean(features, present, "b t h w d -> b (h w) d")
    return features, mask, torch.full_like(mask, -1, dtype=torch.long)


def _slow(tokens: VisualTokens, pool: int) -> tuple[Tensor, Tensor, Tensor]:
    """Slow tokens B (H W) D, their mask B (H W), and the frame of each B (H W)."""
    h, w = _require_grid(tokens.grid)
    if h % pool or w % pool:
        raise InputError(f"a {h}x{w} patch grid is not divisible into {pool}x{pool} pools")
    chosen = _slow_frames_of_each(tokens.frame_mask, pool * pool)  # B S
    features, present = _frames(tokens, chosen).on_grid()  # B S H W D, B S H W
    pattern = "b s (h i) (w j) d -> b (s h w) d"
    if tokens.complete:
        features = reduce(features, pattern, "mean", i=pool, j=pool)
        mask = reduce(present, "b s (h i) (w j) -> b (s h w)", "any", i=pool, j=pool)
    else:
        cells = rearrange(features, "b s (h i) (w j) d -> b s h w i j d", i=pool, j=pool)
        cells_present = rearrange(present, "b s (h i) (w j) -> b s h w i j", i=pool, j=pool)
        features, mask = _masked_mean(cells, cells_present, "b s h w i j d -> b (s h w) d")
    return features, mask, repeat(chosen, "b s -> b (s n)", n=(h // pool) * (w // pool))


def _slow_frames_of_each(frame_mask: Tensor, count: int) -> Tensor:
    """B S: slow frames of each video, spread evenly over the frames that have a token (bool, B T)."""
    if torch.compiler.is_exporting():
        return _slow_frames_traced(frame_mask, count)
    chosen = []
    for row in frame_mask:
        present = row.nonzero().squeeze(1)
        if not len(present):
            raise InputError("a video of the batch has no visual token left")
        chosen.append(present[slow_frames(len(present), count)])
    return torch.stack(chosen)


def _slow_frames_traced(frame_mask: Tensor, count: int) -> Tensor:
    """The same as `_slow_frames_of_each`, without looking at values."""
    last = frame_mask.sum(1, keepdim=True) - 1
    numbers = torch.arange(count, device=frame_mask.device).double() * (last.double() / max(count - 1, 1))
    rank = numbers.round().long().clamp(min=0).minimum(last.clamp(min=0))
    with_tokens_first = (~frame_mask).to(torch.uint8).argsort(dim=1, stable=True)
    return with_tokens_first.gather(1, rank)


def _frames(tokens: VisualTokens, chosen: Tensor) -> VisualTokens:
    """The tokens of the chosen frames (int64, B S) of each video."""
    rows = torch.arange(len(chosen), device=chosen.device).unsqueeze(1)
    return VisualTokens(
        features=tokens.features[rows, chosen],
        grid=tokens.grid,
        index=tokens.index[rows, chosen],
        mask=tokens.mask[rows, chosen],
        question=tokens.question,
    )
