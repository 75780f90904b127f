"""Attention over parts of the keys, put together: what a softmax over all of them would give.

Of a part there is its output o = softmax(s) v and l = logsumexp(s). With m the larger of two l and z = e^(l1-m) +
e^(l2-m), both together have o = (e^(l1-m) o1 + e^(l2-m) o2) / z and l = m + ln z. In any order, and in any grouping.

B rows, H query heads, N queries, D head width
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Attended(NamedTuple):
    """Attention over a part of the keys."""

    out: Tensor
    """B H N D."""
    logsum: Tensor
    """float32 or wider, B H N 1. Logarithm of the sum of exponentiated logits; -inf for a query that sees no key."""


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Attended:
    """Attention over some keys. A query that sees none of them gets zeros.

    Args:
        query: B H N D.
        key, value: B H K D, or with sizes that broadcast; K may be 0.
        mask: bool, broadcast to B H N K; None if everything is seen.
        scaling: of the logits.
    """
    logits = query @ key.transpose(-1, -2) * scaling
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf)
    weights = logits.softmax(-1).nan_to_num(0.0)  # of nothing that is seen
    return Attended(weights.to(value.dtype) @ value, logits.logsumexp(-1, keepdim=True))


def merged(first: Attended, second: Attended) -> Attended:
    """The attention over the keys of both parts, which have none in common."""
    largest = torch.maximum(first.logsum, second.logsum)
    base = largest.masked_fill(largest.isinf(), 0.0)
    own, other = (first.logsum - base).exp(), (second.logsum - base).exp()
    total = own + other
    share = (own / total).nan_to_num(0.0).to(first.out.dtype)  # nothing of nothing
    return Attended(torch.lerp(second.out, first.out, share.expand_as(first.out)), base + total.log())
