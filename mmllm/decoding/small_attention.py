"""Attention of the small layers of drafts: rotary positions as in Llama, and results over two sets of keys merged.

B rows, H heads, N queries, M keys, d head width
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BASE = 10_000.0


def rotated(vectors: Tensor, positions: Tensor, frequencies: Tensor | None = None) -> Tensor:
    """B H N d: vectors of heads, rotated by their positions.

    Args:
        vectors: B H N d.
        positions: int64, B N.
        frequencies: d/2; the usual ones if None.
    """
    if frequencies is None:
        width = vectors.shape[-1]
        frequencies = BASE ** -(torch.arange(0, width, 2, device=vectors.device).float() / width)
    angle = positions.unsqueeze(-1).float() * frequencies.to(positions.device)
    angle = torch.cat([angle, angle], dim=-1).unsqueeze(1)  # B 1 N d
    first, second = vectors.chunk(2, dim=-1)
    return vectors * angle.cos().to(vectors) + torch.cat([-second, first], dim=-1) * angle.sin().to(vectors)


def attended(queries: Tensor, keys: Tensor, values: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """What queries read (B H N d), zero for one that sees nothing, and the logarithms of their sums of exp (B H N).

    Args:
        queries: B H N d.
        keys, values: B H M d; B G M d if groups of heads share keys.
        seen: bool, B N M.
    """
    repeats = queries.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(repeats, 1), values.repeat_interleave(repeats, 1)
    scores = queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])
    seen = seen.unsqueeze(1)
    scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
    return (scores.softmax(-1) * seen) @ values, scores.logsumexp(-1)


def merged(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Tensor:
    """B H N d: attention over two sets of keys, of what `attended` gives for each alone."""
    share = torch.sigmoid(first[1] - second[1]).unsqueeze(-1)
    return first[0] * share + second[0] * (1 - share)
