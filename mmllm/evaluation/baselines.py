"""Baselines that do not look at the video: the whole video, the best constant interval, the most frequent text.

V videos, n questions, S true spans of a question, E candidate ends
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mmllm.errors import InputError
from mmllm.evaluation.metrics import families, over_videos, sample_iou, with_spans
from mmllm.evaluation.samples import Sample
from mmllm.evaluation.span_metrics import merged
from mmllm.times.answers import Span, parse_answer
from mmllm.times.stamps import stamp

GRID = 50
"""Steps of the search for the best constant interval."""


@dataclass(frozen=True, kw_only=True)
class ConstantInterval:
    """The same answer to every question, in fractions of the video's duration."""

    start: float
    end: float

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end <= 1:
            raise InputError(f"a constant interval needs 0 <= start <= end <= 1, not [{self.start}, {self.end}]")

    def answer(self, sample: Sample) -> Sample:
        """The question, answered by this interval."""
        return with_spans(sample, Span(self.start * sample.length_s, self.end * sample.length_s))


WHOLE_VIDEO = ConstantInterval(start=0.0, end=1.0)


def best_constant(samples: Sequence[Sample]) -> ConstantInterval:
    """The interval with the highest mIoU (per video, then over videos) on these questions, by grid search.

    Args:
        samples: questions. Only the truth and duration of those about time are used.

    Raises:
        InputError: if no question is about time.
    """
    timed = [sample for sample in samples if sample.truth_spans]
    if not timed:
        raise InputError("no question is about time: at least one is needed to fit a constant interval")
    questions_of = Counter(sample.vid for sample in timed)
    weight = np.array([1 / questions_of[sample.vid] for sample in timed]) / len(questions_of)  # n
    starts, ends, length = _relative_truth(timed)  # n S, n S, n
    grid = np.linspace(0.0, 1.0, GRID + 1)
    best, best_score = WHOLE_VIDEO, -1.0
    for position, start in enumerate(grid[:-1]):
        candidates = grid[position + 1 :, None]  # E 1
        intersection = np.zeros((len(candidates), len(timed)))  # E n
        for span in range(starts.shape[1]):
            overlap = np.minimum(candidates, ends[:, span]) - np.maximum(start, starts[:, span])
            intersection += np.maximum(overlap, 0)
        scores = intersection / (candidates - start + length - intersection) @ weight  # E
        if scores.max() > best_score + 1e-12:
            best_score = float(scores.max())
            best = ConstantInterval(start=float(start), end=float(candidates[scores.argmax(), 0]))
    return best


def ceiling(samples: Sequence[Sample], writing: Any) -> float | None:
    """mIoU of the truth itself, written and read as the model writes times; None if no question is about time.

    Args:
        samples: questions. Only their truth and duration are used.
        writing: how the model writes times, a part of the kind `time`.
    """

    def answered(sample: Sample) -> Sample:
        spans: list[Span] = []
        for span in sample.truth_spans:
            text = writing.write(f"{stamp(span.start_s)} {stamp(span.end_s)}", sample.length_s)
            spans += parse_answer(writing.read(text, sample.length_s), sample.length_s).spans
        return with_spans(sample, *spans)

    return over_videos([answered(sample) for sample in samples if sample.truth_spans], sample_iou)


def _relative_truth(samples: Sequence[Sample]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True spans in fractions of the duration: starts (n S), ends (n S), and their summed length (n)."""
    truths = [merged(sample.truth_spans) for sample in samples]
    most_spans = max(len(truth) for truth in truths)
    starts, ends = np.zeros((2, len(samples), most_spans))  # padding spans have no length
    for row, (truth, sample) in enumerate(zip(truths, samples, strict=True)):
        for column, span in enumerate(truth):
            starts[row, column] = span.start_s / sample.length_s
            ends[row, column] = span.end_s / sample.length_s
    return starts, ends, (ends - starts).sum(axis=1)


@dataclass(frozen=True, kw_only=True)
class BlindBaseline:
    """The answers of a model that knows the question's family and sees no video."""

    overall: ConstantInterval
    by_family: Mapping[str, ConstantInterval]
    texts: Mapping[str, str]
    """The most frequent true text of each family whose answers are texts."""

    @classmethod
    def fit(cls, samples: Sequence[Sample]) -> BlindBaseline:
        """The best constants for these questions, and their most frequent texts.

        Questions about events that do not happen, and about videos of unknown length, have no part in it.
        """
        timed = [sample for sample in samples if sample.truth_spans and sample.duration_s is not None]
        texts = [sample for sample in samples if not sample.timed]
        return cls(
            overall=best_constant(timed) if timed else WHOLE_VIDEO,
            by_family={family: best_constant(group) for family, group in families(timed).items()},
            texts={family: _most_frequent(group) for family, group in families(texts).items()},
        )

    def answer(self, sample: Sample) -> Sample:
        """The question, answered by its family's constant or text. A family without one gets the overall constant."""
        if sample.truth_spans:
            return self.by_family.get(sample.family, self.overall).answer(sample)
        return replace(sample, prediction_text=self.texts.get(sample.family, ""), error="")


def _most_frequent(samples: Sequence[Sample]) -> str:
    counts = Counter(sample.truth_text.strip().lower() for sample in samples)
    return min(counts, key=lambda text: (-counts[text], text))
