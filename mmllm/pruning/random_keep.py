"""A random choice of tokens: the baseline every reducer must beat.

B videos, T frames, N tokens of a frame, K kept
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from mmllm.pruning.budget import Budget
from mmllm.pruning.selection import top_counted
from mmllm.registry import register
from mmllm.tokens import VisualTokens


@dataclass(frozen=True, kw_only=True)
class RandomConfig(Budget):
    """A budget, and which of all random choices."""

    seed: int = 0


@register("reducer", "random", config=RandomConfig)
class RandomReducer(nn.Module):
    """Random tokens of every frame, the same ones each time: decided by seed, frame and place alone."""

    scores_needed: tuple[str, ...] = ()
    score_choices: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: RandomConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """B T K of B T N tokens; a smaller budget keeps a subset of what a larger one keeps."""
        kept, mask = top_counted(
            _noise(tokens.index, self.config.seed), self.config.per_frame(tokens.mask), tokens.mask
        )
        return tokens.take(kept, mask)

    def kept_tokens(self, tokens_per_frame: int, frames: int) -> int:
        """The most tokens that remain of a whole video."""
        return self.config.upper_bound(tokens_per_frame, frames)


def _noise(index: Tensor, seed: int) -> Tensor:
    """Reproducible noise in [0, 1) for every token (B T N), a hash of seed, frame and place, alike on all devices."""
    frame = torch.arange(index.shape[1], device=index.device).view(-1, 1)
    mixed = (index * 0x9E3779B1 + frame * 0x85EBCA77 + seed * 0xC2B2AE3D) & 0xFFFFFFFF
    for _ in range(3):
        mixed = ((mixed ^ (mixed >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return (mixed >> 8).float() * 2.0**-24
