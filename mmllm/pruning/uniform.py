"""Tokens spread evenly over the picture: the baseline that does not depend on the picture.

B videos, T frames, H W patch grid, N tokens of a frame, K kept
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmllm.interfaces import Origin
from mmllm.pruning.budget import Budget
from mmllm.pruning.ranked import BudgetReducer
from mmllm.registry import register
from mmllm.tokens import VisualTokens


@dataclass(frozen=True, kw_only=True)
class UniformConfig(Budget):
    """A budget."""


@register("reducer", "uniform", config=UniformConfig)
class UniformReducer(BudgetReducer):
    """Tokens spread evenly over the patch grid, or along the line of 1D tokens."""

    origin = Origin(
        original="ours",
        compared_with="properties",
        equal="regular lattices where those exist; every place has its turn",
    )

    @property
    def by_frame(self) -> bool:
        """Whether the budget is one of each frame, not of the whole video."""
        return self.config.total is None

    def ranking(self, tokens: VisualTokens) -> Tensor:
        """float32, B T N: a token ranks higher if the turn of its place comes earlier."""
        height, width = tokens.grid or (1, int(tokens.index.max()) + 1 if tokens.index.numel() else 1)
        turn = torch.from_numpy(spread(height, width)).to(tokens.index.device)
        # A class token has no place on the grid: it ranks like the last one.
        return -turn.float()[tokens.index.clamp(min=0, max=len(turn) - 1)]

    def explain(self, tokens: VisualTokens) -> None:
        """Nothing: the choice does not depend on the picture."""


def spread(height: int, width: int) -> np.ndarray:
    """int64, (H W): the turn of each place of a grid. The places of the first turns, however many, cover it evenly.

    This is ordered dithering: the first quarter of the turns takes every second row and column, the first sixteenth
    every fourth, and so on.
    """
    y, x = np.divmod(np.arange(height * width), width)
    turn = np.zeros(height * width, dtype=np.int64)
    if height == 1:
        x, y = np.zeros_like(x), x  # a line is halved again and again
    bits = max(height, width).bit_length()
    for bit in range(bits):
        turn = turn * 4 + 2 * ((x ^ y) >> bit & 1) + (y >> bit & 1)
    return turn
