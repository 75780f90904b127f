"""Random numbers that depend on positions only, never on the shape of a tensor.

So rows with padding, batches, beams and masked keys get the same numbers as one row alone. Shapes broadcast.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MULTIPLIERS = (0x7FEB352D, 0x846CA68B)
"""Of a known mixer of 32 bits, whose every input bit changes every output bit half of the time."""
_MASK = 0xFFFFFFFF


def _mixed(bits: Tensor) -> Tensor:
    """int64 with 32 random-looking bits for each int64 number."""
    bits = bits & _MASK
    bits = ((bits ^ (bits >> 16)) * _MULTIPLIERS[0]) & _MASK
    bits = ((bits ^ (bits >> 15)) * _MULTIPLIERS[1]) & _MASK
    return bits ^ (bits >> 16)


def uniform(seed: int, *parts: Tensor | int) -> Tensor:
    """float32 in (0, 1): one number for each combination of `parts`, such as layer, head, query and key.

    Args:
        seed: another seed, other numbers.
        parts: whole numbers; tensors that broadcast.
    """
    bits = _mixed(torch.as_tensor(seed, dtype=torch.long))
    for part in parts:
        number = torch.as_tensor(part, dtype=torch.long)
        bits = _mixed(bits.to(number.device) + number * 0x9E3779B1 + 0x85EBCA6B)
    return ((bits >> 8).float() + 0.5) / (1 << 24)


def gumbel(seed: int, *parts: Tensor | int) -> Tensor:
    """float32: Gumbel noise, minus the logarithm of an exponentially distributed number."""
    return -(-uniform(seed, *parts).log()).log()
