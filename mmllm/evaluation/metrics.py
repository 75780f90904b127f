"""Scores of answers as pure functions of samples: time by intersection over union, text by exact match.

As in LITA (arXiv 2403.19046, section 4): IoU is averaged over the questions of each video, then over videos. P@x is
the fraction of questions whose IoU is at least x, averaged in the same way. All scores are from 0 to 1.

These scores are of questions whose event happens. Whether a model also knows when one does not is said by the
false-alarm rate and the miss rate, and by `set_miou`, in which the empty set is an answer like others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mmllm.evaluation.moment_metrics import Moments, moment_scores
from mmllm.evaluation.samples import Sample
from mmllm.evaluation.span_metrics import iou, reaches, set_iou
from mmllm.evaluation.text_metrics import rouge_l, token_f1
from mmllm.times.answers import Span

THRESHOLDS = (0.3, 0.5, 0.7)
CONFIDENCE = 0.95
STUDENT_T = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}
"""Number of values -> 97.5 % quantile of Student's t for their mean; more values than ten get that of ten."""

SampleScore = Callable[[Sample], float]


def clipped(spans: Iterable[Span], duration_s: float) -> list[Span]:
    """The spans with their ends inside the video: there is nothing after it."""
    return [Span(*(min(max(end_s, 0.0), duration_s) for end_s in span.to_json())) for span in spans]


def predicted_spans(sample: Sample) -> list[Span]:
    """The answered spans, clipped to the video if its length is known; none if the question failed."""
    if sample.error:
        return []
    if sample.duration_s is None:
        return list(sample.prediction_spans)
    return clipped(sample.prediction_spans, sample.duration_s)


def sample_iou(sample: Sample) -> float:
    """IoU of one answer, clipped to the video; 0 if the question failed.

    If the truth is one span, only the answer's first span counts, as published. If the truth is several spans, all
    spans of the answer count, as a set.
    """
    if len(sample.truth_spans) != 1:
        return sample_set_iou(sample)
    predicted = predicted_spans(sample)
    return iou(predicted[0], sample.truth_spans[0]) if predicted else 0.0


def sample_set_iou(sample: Sample) -> float:
    """IoU of all spans of an answer and all true ones; 0 if the question failed.

    If the event does not happen, it is 1 for an answer that says so, else 0.
    """
    if sample.error or (sample.absent and not sample.denied):
        return 0.0
    return set_iou(predicted_spans(sample), sample.truth_spans)


def text_match(sample: Sample) -> float:
    """1 if the answer's text is the true one. Case and outer white space do not count. 0 if the question failed."""
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
    """The 95 % bootstrap interval of the mean: values drawn with replacement. None without values."""
    if not len(values):
        return None
    generator, population = np.random.default_rng(seed), np.asarray(values, dtype=np.float64)
    means = [generator.choice(population, size=len(population)).mean() for _ in range(resamples)]
    tail = 100 * (1 - CONFIDENCE) / 2
    return [float(end) for end in np.percentile(means, [tail, 100 - tail])]


def student_half(values: Sequence[float]) -> float:
    """Half of the 95 % interval of the mean of at least two values, by Student's t; a little wide for more than ten."""
    return STUDENT_T[min(len(values), 10)] * float(np.std(values, ddof=1)) / len(values) ** 0.5


def temporal_scores(samples: Sequence[Sample], *, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Scores of the questions about time; a score is None if there is nothing to average.

    | key | meaning |
    |---|---|
    | `temporal_questions` | questions whose truth has a span, failed ones included |
    | `miou`, `p_at_0.3`, `p_at_0.5`, `p_at_0.7` | averaged per video, then over videos; failed questions are 0 |
    | `miou_interval`, `p_at_0.5_interval` | 95 % bootstrap interval over videos |
    | `miou_per_question`, `p_at_0.5_per_question`, ... | averaged over questions |
    | `fallback_rate` | fraction of the answers with fewer than two times; these are scored as the whole video |
    | `miou_without_fallback` | as `miou`, but such answers count as 0 |
    | `miss_rate` | fraction of the answers that say that the event does not happen, although it does |
    | `absent_questions` | questions about an event that does not happen, failed ones included |
    | `false_alarm_rate` | fraction of the answers to them that do not say so |
    | `set_miou` | IoU of all answered and all true spans, averaged as `miou`; also over the questions about an event \
      that does not happen, where it is 1 for an answer that says so |
    | `set_questions` | questions whose truth is several spans |
    | `map`, `map_at_0.5`, ..., `r1_at_0.3`, ... | see `moment_scores`; failed questions are 0 |
    """
    timed = [sample for sample in samples if sample.truth_spans]
    answered = [sample for sample in timed if not sample.error]
    scores: dict[str, Any] = {"temporal_questions": len(timed)}
    ious = {id(sample): sample_iou(sample) for sample in timed}

    def precision(level: float) -> SampleScore:
        return lambda sample: float(reaches(ious[id(sample)], level))

    sample_scores: Mapping[str, SampleScore] = {
        "miou": lambda sample: ious[id(sample)],
        **{f"p_at_{level}": precision(level) for level in THRESHOLDS},
    }
    for name, score in sample_scores.items():
        videos = by_video(timed, score)
        scores[name] = float(np.mean(list(videos.values()))) if videos else None
        scores[f"{name}_per_question"] = over_questions(timed, score)
        if name in ("miou", "p_at_0.5"):
            scores[f"{name}_interval"] = bootstrap_interval(list(videos.values()), resamples=resamples, seed=seed)
    scores["miou_without_fallback"] = over_videos(timed, lambda sample: 0.0 if sample.fallback else ious[id(sample)])
    scores["fallback_rate"] = over_questions(answered, lambda sample: float(sample.fallback))
    absent = [sample for sample in samples if sample.absent]
    moments = [Moments(predicted=tuple(predicted_spans(each)), truth=each.truth_spans) for each in timed]
    return {
        **scores,
        "miss_rate": over_questions(answered, lambda sample: float(sample.denied)),
        "absent_questions": len(absent),
        "false_alarm_rate": over_questions(
            [sample for sample in absent if not sample.error], lambda sample: float(not sample.denied)
        ),
        "set_miou": over_videos([*timed, *absent], sample_set_iou),
        "set_questions": sum(len(sample.truth_spans) > 1 for sample in timed),
        **moment_scores(moments),
    }


def text_scores(samples: Sequence[Sample]) -> dict[str, Any]:
    """Scores of the answers' texts; see `text_metrics`. None if there is nothing to average; failed questions are 0.

    | key | meaning |
    |---|---|
    | `text_questions` | questions that are answered by a text alone, not about time |
    | `text_accuracy` | fraction of them whose text is the true one |
    | `text_f1`, `text_rouge_l` | similarity to the true text |
    | `explanation_questions` | questions about time whose truth also has a text |
    | `explanation_f1`, `explanation_rouge_l` | similarity of that text to the answer's, without the two times |
    """
    texts = [sample for sample in samples if not sample.timed]
    explained = [sample for sample in samples if sample.timed and sample.truth_text]
    return {
        "text_questions": len(texts),
        "text_accuracy": over_questions(texts, text_match),
        "text_f1": over_questions(texts, _similarity(token_f1)),
        "text_rouge_l": over_questions(texts, _similarity(rouge_l)),
        "explanation_questions": len(explained),
        "explanation_f1": over_questions(explained, _similarity(token_f1)),
        "explanation_rouge_l": over_questions(explained, _similarity(rouge_l)),
    }


def _similarity(metric: Callable[[str, str], float]) -> SampleScore:
    return lambda sample: 0.0 if sample.error else metric(sample.prediction_text, sample.truth_text)


def coverage_scores(samples: Sequence[Sample]) -> dict[str, Any]:
    """Counts of questions, videos, answered (`scored`) and failed questions; `coverage` is answered over all."""
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
    return _by_name(samples, lambda sample: sample.family)


def groups(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """The samples of each part of the data set, sorted by its name; empty if it has no parts."""
    return _by_name([sample for sample in samples if sample.group], lambda sample: sample.group)


def _by_name(samples: Sequence[Sample], name: Callable[[Sample], str]) -> dict[str, list[Sample]]:
    by_name: dict[str, list[Sample]] = {}
    for sample in samples:
        by_name.setdefault(name(sample), []).append(sample)
    return dict(sorted(by_name.items()))


def with_spans(sample: Sample, *spans: Span) -> Sample:
    """The same question with these spans as its answer."""
    return replace(sample, prediction_spans=spans, fallback=False, error="")
