"""A random choice of tokens: the baseline every reducer must beat.

B videos, T frames, N tokens of a frame, K kept
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmllm.pruning.budget import Budget
from mmllm.pruning.ranked import BudgetReducer
from mmllm.registry import register
from mmllm.tokens import VisualTokens


@dataclass(frozen=True, kw_only=True)
class RandomConfig(Budget):
    """A budget, and which of all random choices."""

    seed: int = 0


@register("reducer", "random", config=RandomConfig)
class RandomReducer(BudgetReducer):
    """Random tokens of every frame, the same ones each time: decided by seed, frame and place alone."""

    config: RandomConfig

    def ranking(self, tokens: VisualTokens) -> Tensor:
        """float32, B T N: noise."""
        return _noise(tokens.index, self.config.seed)

    def explain(self, tokens: VisualTokens) -> None:
        """Nothing: the picture has no say."""


def _noise(index: Tensor, seed: int) -> Tensor:
    """Reproducible noise in [0, 1) for every token (B T N), a hash of seed, frame and place, alike on all devices."""
    frame = torch.arange(index.shape[1], device=index.device).view(-1, 1)
    mixed = (index * 0x9E3779B1 + frame * 0x85EBCA77 + seed * 0xC2B2AE3D) & 0xFFFFFFFF
    for _ in range(3):
        mixed = ((mixed ^ (mixed >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return (mixed >> 8).float() * 2.0**-24
