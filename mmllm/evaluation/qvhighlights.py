"""Answers in QVHighlights' own form, as its authors' evaluation reads them, and what people said of the clips.

A line is `{"qid": 2579, "pred_relevant_windows": [[start_s, end_s, score], ...], "pred_saliency_scores": [...]}`; one
of both lists may be missing from all lines. Windows are ranked by their scores; the released evaluation takes a line's
first window for R1, so it agrees on files that have their surest window first. The truth is an annotation file, see
`mmllm.datasets.qvhighlights`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmllm.datasets.annotations import list_of
from mmllm.datasets.dialogues import rows_of
from mmllm.datasets.qvhighlights import query_id, read_qvhighlights
from mmllm.datasets.spans import number
from mmllm.errors import InputError
from mmllm.evaluation.moment_metrics import MOST_RANKED
from mmllm.evaluation.saliency_metrics import CLIP_S, Highlights
from mmllm.evaluation.samples import Sample
from mmllm.times.answers import Answer, Span
from mmllm.times.stamps import shortened

WINDOWS, SALIENCY = "pred_relevant_windows", "pred_saliency_scores"


@dataclass(frozen=True, kw_only=True)
class Submission:
    """The answers of a file."""

    samples: list[Sample]
    """Spans with the highest score first. Empty if the file has no windows."""
    highlights: list[Highlights]
    """Empty if the file has no scores of clips."""


def read_submission(predictions: Path, truth: Path) -> Submission:
    """The answers of a file with their truth.

    Raises:
        InputError: naming file and line, if a line is no answer; if queries of the truth have no answer, have two, or
            do not exist; or if a row of the truth is bad.
    """
    questions = {question.question_id: question for question in read_qvhighlights(truth, policy="raise").items}
    ratings = _ratings(truth)
    samples: list[Sample] = []
    highlights: list[Highlights] = []
    seen: set[str] = set()
    for where, row, problem in rows_of(predictions):
        try:
            if problem:
                raise InputError(problem)
            name = query_id(row)
            if name not in questions:
                raise InputError(f"{truth} has no query {name}")
            if name in seen:
                raise InputError(f"query {name} has a second answer")
            seen.add(name)
            if not {WINDOWS, SALIENCY} & set(row):
                raise InputError(f"an answer needs {WINDOWS!r} or {SALIENCY!r}")
            if WINDOWS in row:
                samples.append(Sample.asked(questions[name]).answered(_answer(row)))
            if SALIENCY in row:
                highlights.append(Highlights(predicted=_scores(row), ratings=ratings[name]))
        except InputError as reason:
            raise InputError(f"{predictions}, {where}: {reason}") from None
    if missing := [name for name in questions if name not in seen]:
        raise InputError(
            f"{predictions}: {len(missing)} of {len(questions)} queries have no answer, the first is {missing[0]}"
        )
    for key, answers in ((WINDOWS, samples), (SALIENCY, highlights)):
        if len(answers) not in (0, len(questions)):
            raise InputError(f"{predictions}: only {len(answers)} of {len(questions)} answers have {key!r}")
    return Submission(samples=samples, highlights=highlights)


def _answer(row: Any) -> Answer:
    """The spans of an answer by their scores. Those behind the tenth of the file do not count, as published."""
    windows = []
    for window in list_of(row, WINDOWS)[:MOST_RANKED]:
        if not (isinstance(window, list) and len(window) == 3):
            raise InputError(f"a window must be a start, an end and a score, not {shortened(repr(window))}")
        start_s, end_s, score = (
            number(value, what) for value, what in zip(window, ("a start", "an end", "a score"), strict=True)
        )
        windows.append((score, Span(start_s, end_s)))
    ranked = sorted(windows, key=lambda window: -window[0])
    return Answer(text="", spans=tuple(span for _, span in ranked), raw=str(row[WINDOWS]), fallback=False)


def _scores(row: Any) -> np.ndarray:
    return np.array([number(value, "the score of a clip", "a number") for value in list_of(row, SALIENCY)])


def _ratings(truth: Path) -> dict[str, np.ndarray]:
    """What each person said of each clip of a query's video, C W; clips outside of the true spans have 0."""
    ratings = {}
    for where, row, _ in rows_of(truth):
        clips, said = list_of(row, "relevant_clip_ids"), list_of(row, "saliency_scores")
        count = int(row["duration"] / CLIP_S)
        if any(not isinstance(clip, int) or not 0 <= clip < count for clip in clips):
            raise InputError(
                f"{truth}, {where}: 'relevant_clip_ids' must be numbers from 0 to {count - 1}: {shortened(str(clips))}"
            )
        if len(said) != len(clips) or any(not isinstance(each, list) or len(each) != len(said[0]) for each in said):
            raise InputError(f"{truth}, {where}: 'saliency_scores' must have a list for each of the {len(clips)} clips")
        rating = np.zeros((count, len(said[0]) if said else 1))
        rating[clips] = said
        ratings[query_id(row)] = rating
    return ratings
