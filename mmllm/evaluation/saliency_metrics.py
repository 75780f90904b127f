"""Scores of highlights: how well a score for each short clip of a video agrees with what people find worth seeing.

As QVHighlights (arXiv 2107.09609): a video is cut into clips of 2 s, which three people rated from 0 to 4.

C clips, W people
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmllm.errors import InputError

CLIP_S = 2.0
"""Seconds of a clip."""
RATINGS = {"fair": 2, "good": 3, "very_good": 4}
"""A clip is worth seeing for somebody whose rating is at least so much; papers report `very_good`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Highlights:
    """The clips of one question.

    Raises:
        InputError: if there is no predicted score, or one that is not finite.
    """

    predicted: np.ndarray
    """A score for each clip; float64."""
    ratings: np.ndarray
    """What each person said of each clip: C W."""

    def __post_init__(self) -> None:
        if self.predicted.ndim != 1 or not len(self.predicted) or not np.isfinite(self.predicted).all():
            raise InputError("the scores of clips must be a list of at least one finite number")


def highlight_scores(questions: Sequence[Highlights]) -> dict[str, Any]:
    """Scores over questions, from 0 to 1; None without questions. `NAME` is one of `RATINGS`.

    | key | meaning |
    |---|---|
    | `hit1_NAME` | share of the questions whose highest scored clip is worth seeing for at least one person |
    | `highlight_map_NAME` | average precision of the scores, mean over persons, then over questions |
    """
    scores: dict[str, Any] = {}
    for name, least in RATINGS.items():
        hits = [_hit(question, least) for question in questions]
        precisions = [_precisions(question, least) for question in questions]
        scores[f"hit1_{name}"] = float(np.mean(hits)) if hits else None
        scores[f"highlight_map_{name}"] = float(np.mean(precisions)) if precisions else None
    return scores


def _hit(question: Highlights, least: int) -> bool:
    best = int(question.predicted.argmax())
    return best < len(question.ratings) and bool((question.ratings[best] >= least).any())


def _precisions(question: Highlights, least: int) -> list[float]:
    """Average precision for each person. Clips that have no score are 0, scores behind the last clip do not count."""
    predicted = np.zeros(len(question.ratings))
    scored = min(len(predicted), len(question.predicted))
    predicted[:scored] = question.predicted[:scored]
    return [_average_precision(predicted, person >= least) for person in question.ratings.T]


def _average_precision(predicted: np.ndarray, worth: np.ndarray) -> float:
    """Mean, over the scores that clips worth seeing have, of the best precision at such a score or a lower one."""
    if worth.all() or not worth.any():
        return float(worth.all() and len(worth) > 0)
    order = np.argsort(-predicted, kind="stable")
    last_of_score = np.append(np.diff(predicted[order]) != 0, True)  # clips of equal score come together
    found = np.cumsum(worth[order])[last_of_score]
    precision = found / (np.flatnonzero(last_of_score) + 1)
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    finds = np.diff(found, prepend=0) > 0
    return float(best_from_here[finds].mean())
