"""Which tokens to keep, as pure functions of their scores: batched, ties by position, defined for every k.

... any leading axes, N tokens, K kept
"""

from __future__ import annotations

import operator
from collections.abc import Iterator

import torch
from torch import Tensor

from mmllm.errors import InputError


def check_scores(scores: Tensor) -> None:
    """Refuses scores that cannot be ranked.

    Raises:
        InputError: if a score is not finite.
    """
    if not bool(scores.isfinite().all()):
        raise InputError("scores to rank tokens by must be finite")


def check_features(features: Tensor, mask: Tensor) -> None:
    """Refuses tokens ... N D that cannot be compared; masked ones (bool, ... N) are not looked at.

    Raises:
        InputError: if a feature is not finite.
    """
    check_scores(
        features.detach().sum(-1, dtype=torch.float32).masked_fill(~mask, 0.0)
    )  # nothing of their size is held


def ranks(scores: Tensor) -> Tensor:
    """int64, ... N: rank of each token, 0 for the highest score; of equal scores the earlier position comes first."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    return order.argsort(dim=-1)


def top_attended(scores: Tensor, k: int) -> Tensor:
    """Positions of the `k` highest scores (... N), ascending: int64, ... min(k, N).

    Raises:
        TypeError: if k is not a whole number.
        InputError: if k is negative or a score is not finite.
    """
    k = operator.index(k)
    if k < 0:
        raise InputError(f"k = {k}: must be zero or more tokens")
    check_scores(scores)
    return scores.argsort(dim=-1, descending=True, stable=True)[..., :k].sort(dim=-1).values


def top_counted(scores: Tensor, counts: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Positions of the highest scores; every row has its own budget.

    Args:
        scores: ... N.
        counts: int64, ... How many tokens each row keeps; a row with fewer tokens keeps them all.
        mask: bool, ... N. False at tokens that are padding and are never kept.

    Returns:
        Positions (int64, ... K, ascending, K the largest number kept of a row); and a mask (bool, ... K), False at
        positions that only fill up a shorter row.

    Raises:
        InputError: if a score that is not masked is not finite.
    """
    if mask is None:
        mask = torch.ones_like(scores, dtype=torch.bool)
    scores = scores.masked_fill(~mask, 0.0)
    check_scores(scores)
    kept = (ranks(scores.masked_fill(~mask, -torch.inf)) < counts.unsqueeze(-1)) & mask
    most = int(kept.sum(dim=-1).max()) if kept.numel() else 0
    index = (~kept).to(torch.uint8).argsort(dim=-1, stable=True)[..., :most]
    return index, kept.gather(-1, index)


def equal_frames(mask: Tensor, counts: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Frames that have equally many tokens, together, so that they need no padding.

    Args:
        mask: bool, F N. The tokens that each frame has.
        counts: int64, F. What else the frames of a group must have in common, such as how many tokens they keep.

    Yields:
        Numbers of the frames (int64, f), the positions of their tokens (int64, f n), and their count, or n.
    """
    present = mask.sum(-1)
    counts = present if counts is None else counts
    for tokens, count in torch.stack([present, counts], -1).unique(dim=0).tolist():
        frames = ((present == tokens) & (counts == count)).nonzero()[:, 0]
        if tokens:
            yield frames, mask[frames].nonzero()[:, 1].view(len(frames), tokens), count


def rows_at(values: Tensor, positions: Tensor) -> Tensor:
    """Values F N D at positions F K (int64): F K D."""
    return values.gather(1, positions.unsqueeze(-1).expand(*positions.shape, values.shape[-1]))
