"""The spatial vision aggregator of Cambrian, LongVU and TDC: a grid of queries, each of which looks at its own block.

    2 towers, 4x4 patches each             2x2 queries
    a a b b    a a b b                     a b      query a attends to 4 + 4 patches
    a a b b    a a b b      ------->       c d
    c c d d    c c d d
    c c d d    c c d d

B videos or images, T frames, F frames worked on at once, N patches on a G x G grid, Q queries, K keys of a query,
P patches of a block, C encoder width, W width inside, D LLM width
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from mmllm.errors import ConfigError, InputError
from mmllm.fields import require
from mmllm.interfaces import Grid, VisualTokenizer
from mmllm.preprocessing.padding import shown_cells
from mmllm.registry import register
from mmllm.tokens import VisualTokens

_CHUNK = 16
"""Frames that are worked on at once; bounds the memory."""


@dataclass(frozen=True, kw_only=True)
class SvaConfig:
    """The defaults are TDC's for videos; its first training stage has 576 queries, one for each patch."""

    queries: int = 144
    """Q: tokens of a frame, a square number."""
    width: int = 1024
    """W."""
    depth: int = 3
    """Layers."""
    heads: int = 16
    """Heads of the attention; 16 in the release, whatever the width."""
    correct_unpad: bool = True
    """Leave out what only shows padding. False exchanges height and width of videos, as the released code does: models
    that were trained with it need that. Images are not affected."""

    def __post_init__(self) -> None:
        require(self.queries >= 1 and math.isqrt(self.queries) ** 2 == self.queries, self, "queries", "a square number")
        require(self.width >= 1 and self.width % self.heads == 0, self, "width", f"divisible by heads = {self.heads}")
        require(self.depth >= 1, self, "depth", "at least 1")

    @property
    def side(self) -> int:
        """Rows of the grid of queries."""
        return math.isqrt(self.queries)


@register("tokenizer", "sva", config=SvaConfig)
class SpatialAggregator(VisualTokenizer):
    """A grid of queries that each look at the patches of one or two towers in their block (Cambrian, LongVU, TDC)."""

    needs_frame_size = True

    def __init__(
        self, config: SvaConfig, *, in_width: int, out_width: int, grid: Grid, tower_widths: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.tower_widths = list(tower_widths or (in_width,))
        if grid is None or grid[0] != grid[1] or grid[0] % config.side:
            layout = "1D tokens" if grid is None else f"{grid[0]}x{grid[1]} patches"
            raise ConfigError(
                f"sva with {config.queries} queries needs a square grid of patches whose side is divisible by "
                f"{config.side}; the encoder gives {layout}"
            )
        self.block, self.out_width = grid[0] // config.side, out_width
        self.aux_projectors = nn.ModuleList(_tower_projector(width, config.width) for width in self.tower_widths)
        self.query = nn.Parameter(torch.randn(1, config.width) * config.width**-0.5)
        self.layers = nn.ModuleList(_Layer(config, len(self.tower_widths), self.block**2) for _ in range(config.depth))
        self.projector = nn.Sequential(nn.Linear(config.width, out_width), nn.GELU(), nn.Linear(out_width, out_width))

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """Features B T N C to B T Q D on the grid of queries; queries that see only padding are masked.

        Args:
            tokens: whole or reduced frames. A query whose block has lost all its patches is masked.

        Raises:
            InputError: for tokens without a grid, or on another one than the model was built for.
        """
        side = self.config.side
        if tokens.grid != (side * self.block,) * 2:
            raise InputError(f"sva was built for {side * self.block}x{side * self.block} patches, not {tokens.grid}")
        b, t = tokens.shape[:2]
        features, present = tokens.on_grid()  # B T G G C, B T G G
        shown, seen = self._shown(tokens, side), present & self._shown(tokens, side * self.block).unsqueeze(1)
        chosen = tokens.frame_mask.flatten().nonzero().squeeze(1)
        flat, flat_present, flat_seen = (value.flatten(0, 1) for value in (features, present, seen))
        parts = [
            self._frames(flat[rows], flat_present[rows], flat_seen[rows]) for rows in chosen.split(_CHUNK) if len(rows)
        ]
        out = features.new_zeros(b * t, side * side, self.out_width)
        if parts:
            out = out.index_copy(0, chosen, torch.cat(parts).to(out.dtype))
        kept = self._blocks(present.unsqueeze(-1).flatten(0, 1)).any(dim=(2, 3)).view(b, t, -1)
        return VisualTokens(
            features=out.view(b, t, side * side, -1),
            grid=(side, side),
            mask=kept & shown.flatten(1).unsqueeze(1),
            **tokens.about_frames,
        )

    def token_count(self, tokens_per_frame: int) -> int:
        """Q; fewer are left of frames that are not square."""
        return self.config.queries

    def grid_after(self, grid: Grid) -> Grid:
        """The grid of queries."""
        return (self.config.side, self.config.side)

    def _shown(self, tokens: VisualTokens, side: int) -> Tensor:
        """bool, B S S: the cells of a grid that show more than padding."""
        if tokens.frame_size is None:
            return tokens.mask.new_ones(len(tokens.features), side, side)
        swapped = not self.config.correct_unpad and not tokens.still
        return shown_cells(tokens.frame_size, side, swapped=swapped).to(tokens.mask.device)

    def _blocks(self, values: Tensor) -> Tensor:
        """Values F G G C as F Q P C: the block of each query, row by row."""
        return rearrange(values, "f (r a) (s b) c -> f (r s) (a b) c", a=self.block, b=self.block)

    def _frames(self, features: Tensor, present: Tensor, seen: Tensor) -> Tensor:
        """F Q D of features F G G C; `present` and `seen` (bool, F G G) are patches there are, and those shown."""
        towers = [
            projector(part)
            for projector, part in zip(self.aux_projectors, features.split(self.tower_widths, dim=-1), strict=True)
        ]
        weight = present.unsqueeze(-1).to(towers[0].dtype)
        context = (towers[0] * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1)  # F W; padding counts
        allowed = self._allowed(present, seen)
        blocks = [self._blocks(tower) for tower in towers]
        queries = self.query.expand(len(features), self.config.queries, -1)
        for layer in self.layers:
            queries = layer(queries, context, blocks, allowed)
        return self.projector(queries)

    def _allowed(self, present: Tensor, seen: Tensor) -> Tensor:
        """bool, F Q K: the keys of each query. A block of padding only is seen whole, so that no query sees nothing."""
        there, shown = (self._blocks(mask.unsqueeze(-1)).squeeze(-1) for mask in (present, seen))  # F Q P
        there = there | ~there.any(-1, keepdim=True)
        allowed = torch.where(shown.any(-1, keepdim=True), shown, there)
        return allowed.repeat(1, 1, len(self.tower_widths))


def _tower_projector(in_width: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_width, width), nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width))


class _Layer(nn.Module):
    """Queries that take in their block, given a summary of the frame."""

    def __init__(self, config: SvaConfig, towers: int, patches: int) -> None:
        super().__init__()
        width = config.width
        self.towers = towers
        if patches > 1:
            for i in range(towers):
                self.register_parameter(f"pos_embed_{i}", nn.Parameter(torch.randn(patches, width) * width**-0.5))
        self.proj_context = nn.Linear(width, width, bias=False)
        self.proj_in = nn.Linear(2 * width, width, bias=False)
        self.cross_attn = _BlockAttention(config, towers)
        self.norm = nn.LayerNorm(width)
        self.proj_out: Any = nn.Module()
        self.proj_out.linear_1, self.proj_out.linear_2 = (nn.Linear(width, width, bias=False) for _ in range(2))

    def forward(self, queries: Tensor, context: Tensor, blocks: Sequence[Tensor], allowed: Tensor) -> Tensor:
        """F Q W of queries F Q W, the frame's context F W and the block of each query in each tower (F Q P W)."""
        summary = self.proj_context(context).unsqueeze(1).expand(-1, queries.shape[1], -1)
        hidden = self.proj_in(torch.cat([queries, summary], dim=-1))
        placed = [
            block + getattr(self, f"pos_embed_{i}") if hasattr(self, f"pos_embed_{i}") else block
            for i, block in enumerate(blocks)
        ]
        hidden = hidden + self.cross_attn(hidden, placed, allowed)
        out = self.proj_out.linear_2(nn.functional.gelu(self.proj_out.linear_1(self.norm(hidden))))
        return queries + out


class _BlockAttention(nn.Module):
    """Attention of each query to the patches of its block in all towers; norms before queries, keys and values."""

    def __init__(self, config: SvaConfig, towers: int) -> None:
        super().__init__()
        self.heads, self.towers = config.heads, towers
        self.q_proj = _normed(config.width)
        for i in range(towers):
            self.add_module(f"k_proj_{i}", _normed(config.width))
            self.add_module(f"v_proj_{i}", _normed(config.width))
        self.o_proj = nn.Linear(config.width, config.width, bias=False)

    def forward(self, queries: Tensor, blocks: Sequence[Tensor], allowed: Tensor) -> Tensor:
        keys, values = (
            torch.cat([getattr(self, f"{kind}_proj_{i}")(block) for i, block in enumerate(blocks)], dim=2)
            for kind in ("k", "v")
        )
        asked = rearrange(self.q_proj(queries), "f q (h c) -> (f q) h 1 c", h=self.heads)
        keys, values = (rearrange(part, "f q k (h c) -> (f q) h k c", h=self.heads) for part in (keys, values))
        mask = rearrange(allowed, "f q k -> (f q) 1 1 k")
        mixed = nn.functional.scaled_dot_product_attention(asked, keys, values, mask)
        return self.o_proj(rearrange(mixed, "(f q) h 1 c -> f q (h c)", f=len(queries)))


def _normed(width: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width, bias=False))
