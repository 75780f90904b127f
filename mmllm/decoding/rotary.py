"""Rotary positions for the small layers of drafts: halves are rotated, as in Llama."""

from __future__ import annotations

import torch
from torch import Tensor

BASE = 10_000.0


def rotated(vectors: Tensor, positions: Tensor) -> Tensor:
    """B H N d: vectors of heads, rotated by their positions (int64, B N) at usual frequencies."""
    width = vectors.shape[-1]
    frequency = BASE ** -(torch.arange(0, width, 2, device=vectors.device).float() / width)
    angle = positions.unsqueeze(-1).float() * frequency  # B N d/2
    angle = torch.cat([angle, angle], dim=-1)
    return turned(vectors, angle.cos(), angle.sin())


def turned(vectors: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """B H N d: vectors of heads, turned by angles whose cosines and sines are B N d."""
    first, second = vectors.chunk(2, dim=-1)
    half = torch.cat([-second, first], dim=-1)
    return vectors * cosine.unsqueeze(1).to(vectors) + half * sine.unsqueeze(1).to(vectors)
