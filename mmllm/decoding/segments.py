"""How an answer is cut into groups of tokens that become one step (HAMburger), from how unsure a teacher was of each.

Each rule goes from left to right and returns the sizes of the groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

LOW, RATIO = 0.05, 0.3
"""Entropies (nats) below LOW are small; those below RATIO times the largest of the group are small beside it."""
RELEASED_WORDS = 128256
"""Words of the model for which the released limits were computed."""


def entropy_at(confidence: float, words: int = RELEASED_WORDS) -> float:
    """The entropy (nats) of a law that gives one word `confidence`, and all others the same.

    Args:
        confidence: above 0 and below 1.
        words: at least 2.
    """
    rest = 1.0 - confidence
    return -(confidence * math.log(confidence) + rest * math.log(rest / (words - 1)))


def _grown(values: Iterable[float], most: int, joins: Callable[[float, float], bool]) -> list[int]:
    """Sizes of groups: a value joins its group if `joins(value, largest of the group)` and there is room."""
    sizes: list[int] = []
    largest = -1.0
    for value in values:
        if joins(value, largest) and (sizes[-1] if sizes else 0) < most:
            sizes[-1:] = [sizes[-1] + 1] if sizes else [1]
            largest = max(largest, value)
        else:
            sizes.append(1)
            largest = value
    return sizes


def decreasing_v2(values: Sequence[float], most: int = 4) -> list[int]:
    """A token joins if its entropy is below LOW, or below RATIO times the largest of the group."""
    return _grown(values, most, lambda value, largest: value < LOW or value < RATIO * largest)


def decreasing(values: Sequence[float], most: int = 4) -> list[int]:
    """A token joins if its entropy is at most RATIO times that of the group's first."""
    return _grown(values, most, lambda value, first: value <= RATIO * first)


def sliding(values: Sequence[float], most: int = 4, limit: float | None = None) -> list[int]:
    """A token joins if its entropy is below a limit: that of 70 % confidence if None."""
    below = entropy_at(0.7) if limit is None else limit
    return _grown(values, most, lambda value, _: value < below)


def small_group(values: Sequence[float], most: int = 4, limit: float | None = None) -> list[int]:
    """Tokens up to a limit (the entropy of 95 % confidence if None) are grouped; each of the others is alone."""
    above = entropy_at(0.95) if limit is None else limit
    sizes: list[int] = []
    is_open = False
    for value in values:
        if value <= above and is_open and sizes[-1] < most:
            sizes[-1] += 1
        else:
            sizes.append(1)
        is_open = value <= above
    return sizes


SEGMENTERS: dict[str, Callable[[Sequence[float]], list[int]]] = {
    "decreasing_v2": decreasing_v2,
    "decreasing": decreasing,
    "sliding": sliding,
    "small_group": small_group,
}
