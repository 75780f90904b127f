"""Scores of sets of spans as pure functions: overlap, average precision, and the distance that a reward needs.

The empty set is an answer, too: "it does not happen". Two empty sets agree, so they have IoU 1 and reward 1; an empty
set and a set with a span have 0.

P predicted spans, G true spans
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np

from mmllm.errors import InputError
from mmllm.times.answers import Span

ROUNDING = 1e-9
"""An IoU that is less than a level by so much is at the level."""


def iou(first: Span, second: Span) -> float:
    """Length of the intersection over length of the union. An instant has 1 with itself and 0 with all else."""
    return set_iou([first], [second])


def set_iou(first: Sequence[Span], second: Sequence[Span]) -> float:
    """IoU of two sets of spans: the time that both cover over the time that at least one covers.

    If no span has a length, it is 1 for the same instants, else 0. Two empty sets have 1.
    """
    first, second = merged(first), merged(second)
    intersection_s = 0.0
    for a in first:
        for b in second:
            intersection_s += max(min(a.end_s, b.end_s) - max(a.start_s, b.start_s), 0.0)
    union_s = sum(span.length_s for span in first) + sum(span.length_s for span in second) - intersection_s
    if union_s > 0:
        return intersection_s / union_s
    return float(first == second)


def tiou_matrix(predicted: Sequence[Span], truth: Sequence[Span]) -> np.ndarray:
    """IoU of each predicted span with each true span: float64, P G."""
    a, b = (
        np.array([span.to_json() for span in spans], dtype=np.float64).reshape(-1, 2) for spans in (predicted, truth)
    )
    shared_s = np.minimum.outer(a[:, 1], b[:, 1]) - np.maximum.outer(a[:, 0], b[:, 0])  # P G
    shared_s = shared_s.clip(min=0)
    union_s = np.add.outer(a[:, 1] - a[:, 0], b[:, 1] - b[:, 0]) - shared_s
    same = (a[:, None] == b[None]).all(axis=-1)  # two instants
    return np.where(union_s > 0, shared_s / np.where(union_s > 0, union_s, 1.0), same.astype(np.float64))


def reaches(score: float, level: float) -> bool:
    """Whether an IoU is at least a level, but for the rounding of its computation: 0.5 s of 1 s is 0.5."""
    return score >= level - ROUNDING


def merged(spans: Iterable[Span]) -> list[Span]:
    """The same time as ordered spans that neither touch nor overlap."""
    result: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.start_s, span.end_s)):
        if result and span.start_s <= result[-1].end_s:
            result[-1] = Span(result[-1].start_s, max(result[-1].end_s, span.end_s))
        else:
            result.append(span)
    return result


def wasserstein1(first: Sequence[Span], second: Sequence[Span]) -> float:
    """Wasserstein-1 distance, in seconds, of the uniform distributions on two sets of spans.

    It says how far the time of one set has to be moved on average to become the other, so it also tells two answers
    apart that do not overlap the truth. If no span of a set has a length, its instants have equal shares.

    Raises:
        InputError: if a set is empty: there is no distribution on nothing.
    """
    if not first or not second:
        raise InputError("the distance of two sets of spans needs at least one span in each")
    a, b = _quantiles(first), _quantiles(second)
    levels = sorted({level for pieces in (a, b) for piece in pieces for level in piece[:2]})
    distance_s = 0.0
    i = j = 0
    for low, high in itertools.pairwise(levels):
        while a[i][1] <= low:
            i += 1
        while b[j][1] <= low:
            j += 1
        at_low = _time_at(a[i], low) - _time_at(b[j], low)
        at_high = _time_at(a[i], high) - _time_at(b[j], high)
        distance_s += (high - low) * _mean_of_absolute(at_low, at_high)
    return distance_s


_Piece = tuple[float, float, float, float]
"""Of a quantile function: shares of the set before and up to the end of a span, then the span's start and end."""


def _quantiles(spans: Sequence[Span]) -> list[_Piece]:
    """The quantile function of the uniform distribution on a set, a linear piece for each span that has a share."""
    parts = merged(spans)
    total_s = sum(part.length_s for part in parts)
    parts = [part for part in parts if part.length_s > 0] if total_s > 0 else parts
    pieces: list[_Piece] = []
    share = 0.0
    for part in parts:
        until = min(share + (part.length_s / total_s if total_s > 0 else 1 / len(parts)), 1.0)
        pieces.append((share, until, part.start_s, part.end_s))
        share = until
    pieces[-1] = (pieces[-1][0], 1.0, *pieces[-1][2:])  # the sum of the shares has a rounding error
    return pieces


def _time_at(piece: _Piece, share: float) -> float:
    low, high, start_s, end_s = piece
    return start_s + (end_s - start_s) * (share - low) / (high - low)


def _mean_of_absolute(begin: float, end: float) -> float:
    """Mean of |x| while x goes from one value to another."""
    if begin * end >= 0:
        return (abs(begin) + abs(end)) / 2
    return (begin**2 + end**2) / (2 * (abs(begin) + abs(end)))


def wasserstein_reward(predicted: Sequence[Span], truth: Sequence[Span], beta: float = 3.0) -> float:
    """`exp(-beta W1 / L)`, where L is the time that the truth covers; from 0 to 1, and 1 only for the truth itself.

    This is the reward of TimeLens2 (beta 3). Unlike IoU it still grows when an answer that misses the truth comes
    nearer. Beside the published form: two empty sets have 1, an empty set and a set with a span 0; a truth of instants
    alone, which covers no time, gives 1 to the same instants, else 0.

    Args:
        predicted: the answered spans, in any order; spans that overlap count once.
        truth: the true spans.
        beta: how fast the reward falls with the distance.

    Raises:
        InputError: if beta is not a positive, finite number.
    """
    if not (math.isfinite(beta) and beta > 0):
        raise InputError(f"beta must be a positive number, not {beta}")
    if not predicted or not truth:
        return float(not predicted and not truth)
    covered_s = sum(span.length_s for span in merged(truth))
    distance_s = wasserstein1(predicted, truth)
    if covered_s == 0:
        return float(distance_s == 0)
    return math.exp(-beta * distance_s / covered_s)
