"""Which keys stay in the cache: the best by a score, the most recent ones, and those that are protected.

B rows, G key heads, K keys, K' keys that stay
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmllm.errors import InputError
from mmllm.llm.values import KeptKeys


def recent_keys(free: Tensor, count: Tensor) -> Tensor:
    """bool, B G K: the last so many (int64, B) of the keys in `free` (bool, B G K)."""
    behind = free.flip(-1).cumsum(-1).flip(-1)  # 1 for the newest
    return free & (behind <= count[:, None, None])


def first_keys(free: Tensor, count: Tensor) -> Tensor:
    """bool, B G K: the first so many (int64, B) of the keys in `free` (bool, B G K)."""
    return free & (free.cumsum(-1) <= count[:, None, None])


def best_keys(score: Tensor, candidates: Tensor, count: Tensor) -> Tensor:
    """bool, B G K: the so many (int64, B) best candidates; among equals those that come first.

    Args:
        score: float32, B G K.
        candidates: bool, B G K.
        count: int64, B.

    Raises:
        InputError: if a candidate's score is not a number.
    """
    if bool((score.isnan() & candidates).any()):
        raise InputError("a score of the LLM's attention is not a number, so no key can be chosen by it")
    order = score.masked_fill(~candidates, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    rank = order.argsort(dim=-1)
    return candidates & (rank < count[:, None, None])


def heavy_and_recent(score: Tensor, free: Tensor, heavy: Tensor, recent: Tensor) -> Tensor:
    """bool, B G K: the last `recent` of the free keys, and the `heavy` best before them.

    Args:
        score: float32, B G K.
        free: bool, B G K. The keys among which is chosen: real ones that are not protected.
        heavy, recent: int64, B.
    """
    near = recent_keys(free, recent)
    return near | best_keys(score, free & ~near, heavy)


def kept_keys(stay: Tensor, valid: Tensor) -> KeptKeys | None:
    """The keys that stay (bool, B G K) of those that are real (bool, B G K); None if all real ones do.

    All heads and rows get equally many slots. Filling stands in front, so that the newest key stays last.
    """
    if bool((stay | ~valid).all()):
        return None
    most = int(stay.sum(-1).max())
    index = stay.to(torch.uint8).argsort(dim=-1, stable=True)[..., stay.shape[-1] - most :]
    return KeptKeys(index=index, valid=stay.gather(-1, index))
