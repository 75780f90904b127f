"""Reducers that put the tokens of each frame into an order of choice, and keep the first ones.

B videos or images, T frames or tiles, F of them at once, N tokens of a frame, K kept
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmllm.tokens import VisualTokens

_BLOCK_ELEMENTS = 1 << 25
"""Entries of N x N matrices that are held at a time, at most (128 MiB)."""


def first_of_order(tokens: VisualTokens, counts: Tensor, order: Callable[[slice, int], Tensor]) -> VisualTokens:
    """The first `counts` (int64, B T) tokens of each frame's order, in raster order.

    Args:
        tokens: B T N.
        counts: how many of each frame are kept.
        order: from a run of the B * T frames, and K, to positions in the order of choice (int64, F K); it may hold an
            N x N matrix of each of them.
    """
    b, t, n, _ = tokens.shape
    flat = counts.flatten()
    most = int(flat.max()) if flat.numel() else 0
    if most == 0:
        return tokens
    step = max(1, _BLOCK_ELEMENTS // n**2)
    chosen = torch.cat([order(slice(first, first + step), most) for first in range(0, b * t, step)])
    kept, present = in_raster_order(chosen, flat, n)
    return tokens.take(kept.view(b, t, most), present.view(b, t, most))


def in_raster_order(order: Tensor, counts: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """The first `counts` (F) entries of orders F K of so many tokens, ascending; and a mask, False at filling."""
    counted = torch.arange(order.shape[1], device=order.device) < counts.unsqueeze(-1)
    kept = order.masked_fill(~counted, tokens).sort(dim=-1).values
    present = kept < tokens
    return kept.masked_fill(~present, 0), present
