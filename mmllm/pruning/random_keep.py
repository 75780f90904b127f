"""A random choice of tokens: the baseline every reducer must beat.

B videos, T frames, N tokens of a frame, K kept
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmllm.interfaces import Origin
from mmllm.pruning.budget import Budget
from mmllm.pruning.ranked import BudgetReducer
from mmllm.registry import register
from mmllm.tokens import VisualTokens


@dataclass(frozen=True, kw_only=True)
class RandomConfig(Budget):
    """A budget and a seed."""

    seed: int = 0
    """Another seed gives another random choice."""


@register("reducer", "random", config=RandomConfig)
class RandomReducer(BudgetReducer):
    """Random tokens of every frame. Seed, frame and place alone decide, so that the choice is the same each time."""

    origin = Origin(
        original="ours",
        compared_with="properties",
        equal="no place is favoured; the same choice each time",
    )

    config: RandomConfig

    def ranking(self, tokens: VisualTokens) -> Tensor:
        """float32, B T N: noise."""
        return _noise(tokens.index, self.config.seed)

    def explain(self, tokens: VisualTokens) -> None:
        """Nothing: the choice does not depend on the picture."""


def _noise(index: Tensor, seed: int) -> Tensor:
    """Noise in [0, 1) for every token (B T N): a hash of seed, frame and place, the same on all devices."""
    frame = torch.arange(index.shape[1], device=index.device).view(-1, 1)
    mixed = (index * 0x9E3779B1 + frame * 0x85EBCA77 + seed * 0xC2B2AE3D) & 0xFFFFFFFF
    for _ in range(3):
        mixed = ((mixed ^ (mixed >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return (mixed >> 8).float() * 2.0**-24
