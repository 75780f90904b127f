"""Scores of ranked spans, as QVHighlights (arXiv 2107.09609) and others report them: mAP and R1.

A model that says spans one after another ranks them so: the first one said is the surest.

P predicted spans, G true spans, L levels of IoU
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmllm.evaluation.span_metrics import ROUNDING, reaches, tiou_matrix
from mmllm.times.answers import Span

LEVELS = tuple(number / 100 for number in range(50, 100, 5))
"""The levels of IoU that mAP is the mean over."""
RECALL_LEVELS = (0.3, 0.5, 0.7)
GROUPS = {"short": (0.0, 10.0), "middle": (10.0, 30.0), "long": (30.0, math.inf)}
"""Lengths in seconds of the true spans of a group: above the first number, up to the second."""
MOST_RANKED = 10
"""Further predicted spans of a question do not count, as published."""


@dataclass(frozen=True, kw_only=True)
class Moments:
    """The spans of one question."""

    predicted: tuple[Span, ...]
    """The surest first."""
    truth: tuple[Span, ...]
    """At least one."""


def moment_scores(questions: Sequence[Moments]) -> dict[str, Any]:
    """Scores over questions that have a true span; each is from 0 to 1, None if there is no such question.

    | key | meaning |
    |---|---|
    | `map` | average precision of the ranked spans, mean over IoU 0.5, 0.55, ..., 0.95, then over questions |
    | `map_at_0.5`, `map_at_0.75` | the same at one level |
    | `map_short`, `map_middle`, `map_long` | `map` of the true spans up to 10 s, up to 30 s, and longer ones; \
      questions without such a span are left out |
    | `r1_at_0.3`, `r1_at_0.5`, `r1_at_0.7` | share of the questions whose first span has so much IoU with a true one |

    An answer without spans counts as 0. (The released evaluation leaves it out of mAP.)
    """
    overlaps = [tiou_matrix(each.predicted[:MOST_RANKED], each.truth) for each in questions]
    precisions = np.array([average_precisions(tiou) for tiou in overlaps]).reshape(-1, len(LEVELS))
    best = [float(tiou[:1].max(initial=0.0)) for tiou in overlaps]
    return {
        "map": _mean(precisions),
        "map_at_0.5": _mean(precisions[:, LEVELS.index(0.5)]),
        "map_at_0.75": _mean(precisions[:, LEVELS.index(0.75)]),
        **{f"map_{name}": _map_of_length(questions, overlaps, precisions, *limits) for name, limits in GROUPS.items()},
        **{f"r1_at_{level}": _mean([reaches(score, level) for score in best]) for level in RECALL_LEVELS},
    }


def _map_of_length(
    questions: Sequence[Moments], overlaps: Sequence[np.ndarray], precisions: np.ndarray, above_s: float, up_to_s: float
) -> float | None:
    """mAP of the true spans of such a length; questions that have none are left out."""
    rows = []
    for moments, tiou, all_lengths in zip(questions, overlaps, precisions, strict=True):
        inside = [above_s < span.length_s <= up_to_s for span in moments.truth]
        if any(inside):
            rows.append(all_lengths if all(inside) else average_precisions(tiou[:, inside]))
    return _mean(rows)


def average_precisions(tiou: np.ndarray) -> np.ndarray:
    """Average precision of one question's spans at each of `LEVELS`.

    Args:
        tiou: IoU of each predicted span, the surest first, with each true one: P G, G at least 1.
    """
    if tiou.shape[1] == 1:  # what most questions have: the first span that is near enough is the hit
        reached = tiou >= np.array(LEVELS) - ROUNDING  # P L
        return (
            np.where(reached.any(axis=0), 1 / (1 + reached.argmax(axis=0)), 0.0) if len(tiou) else np.zeros(len(LEVELS))
        )
    return np.array([_average_precision(_hits(tiou, level), tiou.shape[1]) for level in LEVELS])


def _hits(tiou: np.ndarray, level: float) -> np.ndarray:
    """Which predicted spans find a true span that no surer one has found: bool, P. The nearest one is taken."""
    hits, free = np.zeros(len(tiou), dtype=bool), set(range(tiou.shape[1]))
    for rank, row in enumerate(tiou):
        reached = [(score, number) for number, score in enumerate(row) if number in free and reaches(score, level)]
        if reached:
            hits[rank] = True
            free.remove(max(reached)[1])
    return hits


def _average_precision(hits: np.ndarray, truths: int) -> float:
    """Mean over true spans of the best precision at their rank or behind it; 0 for spans that were not found."""
    if not hits.any():
        return 0.0
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)  # P
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    return float(best_from_here[hits].sum() / truths)


def _mean(values: Any) -> float | None:
    return float(np.mean(values)) if len(values) else None
