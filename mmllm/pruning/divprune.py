"""DivPrune: the most diverse tokens of an image, whatever the encoder's attention (CVPR 2025, arXiv 2503.02175).

B videos or images, T frames or tiles, F frames at once, N tokens of a frame, K kept, D LLM width
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mmllm.interfaces import ProjectedReducer
from mmllm.pruning.budget import Budget
from mmllm.pruning.diversity import cosine_distance, max_min_order
from mmllm.registry import register
from mmllm.tokens import VisualTokens

_BLOCK_ELEMENTS = 1 << 25
"""Distances that are held at a time, at most (128 MiB)."""


@dataclass(frozen=True, kw_only=True)
class DivPruneConfig(Budget):
    """A budget; the paper keeps `ratio=0.098` of an image's tokens."""

    rounding: ClassVar[Literal["nearest", "even", "floor"]] = "even"


@register("reducer", "divprune", config=DivPruneConfig)
class DivPruneReducer(ProjectedReducer):
    """DivPrune: in every frame the tokens that are farthest from each other, by the cosine behind the projector."""

    def __init__(self, config: DivPruneConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """B T K of B T N tokens, in raster order; a smaller budget keeps a subset of what a larger one keeps.

        Raises:
            InputError: if a feature is not finite, or the budget exceeds the tokens of a frame.
        """
        counts = self.config.per_frame(tokens.mask).flatten()  # F
        features, mask = tokens.features.flatten(0, 1), tokens.mask.flatten(0, 1)  # F N D, F N
        most = int(counts.max()) if counts.numel() else 0
        if most == 0:
            return tokens
        step = max(1, _BLOCK_ELEMENTS // features.shape[1] ** 2)
        order = torch.cat(
            [
                max_min_order(cosine_distance(part), most, present)
                for part, present in zip(features.split(step), mask.split(step), strict=True)
            ]
        )
        kept, present = in_raster_order(order, counts, features.shape[1])
        b, t = tokens.shape[:2]
        return tokens.take(kept.view(b, t, most), present.view(b, t, most))

    def kept_tokens(self, tokens_per_frame: int, frames: int) -> int:
        """The most tokens that remain of a whole video."""
        return self.config.upper_bound(tokens_per_frame, frames)


def in_raster_order(order: Tensor, counts: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """The first `counts` (F) entries of orders F K of so many tokens, ascending; and a mask, False at filling."""
    counted = torch.arange(order.shape[1], device=order.device) < counts.unsqueeze(-1)
    kept = order.masked_fill(~counted, tokens).sort(dim=-1).values
    present = kept < tokens
    return kept.masked_fill(~present, 0), present
