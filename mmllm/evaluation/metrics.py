"""Scores of answers as pure functions of samples: time by intersection over union, text by exact match.

As LITA reports (arXiv 2403.19046, section 4): a question's IoU is averaged over its video's questions, then over
videos; P@x is the share of questions whose IoU is at least x, averaged the same way. All scores are from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mmllm.evaluation.samples import Sample
from mmllm.evaluation.text_metrics import rouge_l, token_f1
from mmllm.times.answers import Span

THRESHOLDS = (0.3, 0.5, 0.7)
CONFIDENCE = 0.95

SampleScore = Callable[[Sample], float]


def iou(one: Span, other: Span) -> float:
    """Length of the intersection over length of the union; 0 if the union has no length."""
    return set_iou([one], [other])


def set_iou(some: Sequence[Span], others: Sequence[Span]) -> float:
    """The same for two sets of spans: the time that both name over the time that either names."""
    some, others = merged(some), merged(others)
    both = 0.0
    for one in some:
        for other in others:
            both += max(min(one.end_s, other.end_s) - max(one.start_s, other.start_s), 0.0)
    either = sum(span.length_s for span in some) + sum(span.length_s for span in others) - both
    return both / either if either > 0 else 0.0


def merged(spans: Iterable[Span]) -> list[Span]:
    """The same instants as spans that neither touch nor overlap, in order."""
    result: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.start_s, span.end_s)):
        if result and span.start_s <= result[-1].end_s:
            result[-1] = Span(result[-1].start_s, max(result[-1].end_s, span.end_s))
        else:
            result.append(span)
    return result


def sample_iou(sample: Sample) -> float:
    """IoU of one answer; 0 if the question failed.

    Where the truth is one span, the answer's first span counts, as published. Where it is several, all the answer's
    spans count as a set.
    """
    if sample.error or not sample.prediction_spans:
        return 0.0
    if len(sample.truth_spans) == 1:
        return iou(sample.prediction_spans[0], sample.truth_spans[0])
    return set_iou(sample.prediction_spans, sample.truth_spans)


def text_match(sample: Sample) -> float:
    """1 if the answer's text is the true one, apart from case and white space at its ends; 0 if the question failed."""
    if sample.error:
        return 0.0
    return float(sample.prediction_text.strip().lower() == sample.truth_text.strip().lower())


def by_video(samples: Sequence[Sample], score: SampleScore) -> dict[str, float]:
    """Mean score of each video's questions."""
    scores: dict[str, list[float]] = {}
    for sample in samples:
        scores.setdefault(sample.vid, []).append(score(sample))
    return {vid: float(np.mean(values)) for vid, values in scores.items()}


def over_videos(samples: Sequence[Sample], score: SampleScore) -> float | None:
    """Mean over videos of each video's mean; None if there are no samples."""
    means = by_video(samples, score)
    return float(np.mean(list(means.values()))) if means else None


def over_questions(samples: Sequence[Sample], score: SampleScore) -> float | None:
    """Mean over questions; None if there are no samples."""
    return float(np.mean([score(sample) for sample in samples])) if samples else None


def bootstrap_interval(values: Sequence[float], *, resamples: int = 1000, seed: int = 0) -> list[float] | None:
    """The 95 % interval of the mean under drawing as many values again with replacement; None without values."""
    if not len(values):
        return None
    generator, drawn = np.random.default_rng(seed), np.asarray(values, dtype=np.float64)
    means = [generator.choice(drawn, size=len(drawn)).mean() for _ in range(resamples)]
    tail = 100 * (1 - CONFIDENCE) / 2
    return [float(end) for end in np.percentile(means, [tail, 100 - tail])]


def temporal_scores(samples: Sequence[Sample], *, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Scores of the questions about time; None where there is nothing to average.

    | key | meaning |
    |---|---|
    | `temporal_questions` | questions whose truth has a span, failed ones included |
    | `miou`, `p_at_0.3`, `p_at_0.5`, `p_at_0.7` | averaged per video, then over videos; failed questions are 0 |
    | `miou_interval`, `p_at_0.5_interval` | 95 % bootstrap interval over videos |
    | `miou_per_question`, `p_at_0.5_per_question`, ... | averaged over questions |
    | `fallback_rate` | share of the answered ones with fewer than two times, scored as the whole video |
    | `miou_without_fallback` | as `miou`, with such answers as 0 |
    """
    timed = [sample for sample in samples if sample.truth_spans]
    answered = [sample for sample in timed if not sample.error]
    scores: dict[str, Any] = {"temporal_questions": len(timed)}
    known = {id(sample): sample_iou(sample) for sample in timed}

    def reaches(level: float) -> SampleScore:
        return lambda sample: float(known[id(sample)] >= level)

    kinds: Mapping[str, SampleScore] = {
        "miou": lambda sample: known[id(sample)],
        **{f"p_at_{level}": reaches(level) for level in THRESHOLDS},
    }
    for name, score in kinds.items():
        videos = by_video(timed, score)
        scores[name] = float(np.mean(list(videos.values()))) if videos else None
        scores[f"{name}_per_question"] = over_questions(timed, score)
        if name in ("miou", "p_at_0.5"):
            scores[f"{name}_interval"] = bootstrap_interval(list(videos.values()), resamples=resamples, seed=seed)
    scores["miou_without_fallback"] = over_videos(timed, lambda sample: 0.0 if sample.fallback else known[id(sample)])
    scores["fallback_rate"] = over_questions(answered, lambda sample: float(sample.fallback))
    return scores


def text_scores(samples: Sequence[Sample]) -> dict[str, Any]:
    """Scores of what was said; see `text_metrics`. None where there is nothing to average; failed questions are 0.

    | key | meaning |
    |---|---|
    | `text_questions` | questions that are answered by a text alone: their truth has no span |
    | `text_accuracy` | share of them whose text is the true one |
    | `text_f1`, `text_rouge_l` | likeness to the true text |
    | `explanation_questions` | questions about time whose truth says something besides |
    | `explanation_f1`, `explanation_rouge_l` | likeness of what is said there, the two times taken out |
    """
    texts = [sample for sample in samples if not sample.truth_spans]
    explained = [sample for sample in samples if sample.truth_spans and sample.truth_text]
    return {
        "text_questions": len(texts),
        "text_accuracy": over_questions(texts, text_match),
        "text_f1": over_questions(texts, _likeness(token_f1)),
        "text_rouge_l": over_questions(texts, _likeness(rouge_l)),
        "explanation_questions": len(explained),
        "explanation_f1": over_questions(explained, _likeness(token_f1)),
        "explanation_rouge_l": over_questions(explained, _likeness(rouge_l)),
    }


def _likeness(metric: Callable[[str, str], float]) -> SampleScore:
    return lambda sample: 0.0 if sample.error else metric(sample.prediction_text, sample.truth_text)


def coverage_scores(samples: Sequence[Sample]) -> dict[str, Any]:
    """How much was asked, how much was answered, and `coverage`: answered over asked."""
    failed = sum(bool(sample.error) for sample in samples)
    return {
        "questions": len(samples),
        "videos": len({sample.vid for sample in samples}),
        "scored": len(samples) - failed,
        "failed": failed,
        "coverage": (len(samples) - failed) / len(samples) if samples else None,
    }


def families(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """The samples of each family, sorted by its name."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.family, []).append(sample)
    return dict(sorted(groups.items()))


def with_spans(sample: Sample, *spans: Span) -> Sample:
    """The same question as if it had been answered by these spans."""
    return replace(sample, prediction_spans=spans, fallback=False, error="")
