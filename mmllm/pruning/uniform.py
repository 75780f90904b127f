"""Tokens spread evenly over the picture: the baseline that looks at nothing.

B videos, T frames, H W patch grid, N tokens of a frame, K kept
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from mmllm.pruning.budget import Budget
from mmllm.pruning.selection import top_counted
from mmllm.registry import register
from mmllm.tokens import VisualTokens


@dataclass(frozen=True, kw_only=True)
class UniformConfig(Budget):
    """A budget."""


@register("reducer", "uniform", config=UniformConfig)
class UniformReducer(nn.Module):
    """Tokens spread evenly over the patch grid, or along the line of 1D tokens."""

    scores_needed: tuple[str, ...] = ()
    score_choices: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: UniformConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """B T K of B T N tokens; a smaller budget keeps a subset of what a larger one keeps."""
        height, width = tokens.grid or (1, int(tokens.index.max()) + 1 if tokens.index.numel() else 1)
        turn = torch.from_numpy(spread(height, width)).to(tokens.index.device)
        scores = -turn.float()[tokens.index.clamp(min=0, max=len(turn) - 1)]  # a class token has no place: as the last
        kept, mask = top_counted(scores, self.config.per_frame(tokens.mask), tokens.mask)
        return tokens.take(kept, mask)

    def kept_tokens(self, tokens_per_frame: int, frames: int) -> int:
        """The most tokens that remain of a whole video."""
        return self.config.upper_bound(tokens_per_frame, frames)


def spread(height: int, width: int) -> np.ndarray:
    """int64, (H W): the turn at which each place of a grid is taken so that any first few cover it evenly.

    Ordered dithering: a quarter of the turns is every second row and column, a sixteenth every fourth, and so on.
    """
    y, x = np.divmod(np.arange(height * width), width)
    turn = np.zeros(height * width, dtype=np.int64)
    if height == 1:
        x, y = np.zeros_like(x), x  # a line is halved again and again
    bits = max(height, width).bit_length()
    for bit in range(bits):
        turn = turn * 4 + 2 * ((x ^ y) >> bit & 1) + (y >> bit & 1)
    return turn
