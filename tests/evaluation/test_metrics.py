"""Metrics: known numbers, the published averaging, sets of spans, failures, bootstrap."""

import pytest

from mmllm.evaluation.metrics import (
    bootstrap_interval,
    coverage_scores,
    sample_iou,
    temporal_scores,
    text_scores,
)
from mmllm.evaluation.samples import Sample
from mmllm.evaluation.span_metrics import reaches
from mmllm.times.answers import Span


def sample(question_id="q", vid="v", truth=((0, 5),), predicted=((0, 5),), **fields):
    return Sample(
        question_id=question_id,
        vid=vid,
        family=fields.pop("family", "visible"),
        question="When?",
        duration_s=fields.pop("duration_s", 10.0),
        truth_spans=tuple(Span(*ends) for ends in truth),
        prediction_spans=tuple(Span(*ends) for ends in predicted),
        **fields,
    )


def test_averages_per_video_then_over_videos():
    samples = [
        sample("a0", "a", predicted=((0, 5),)),
        sample("a1", "a", predicted=((5, 10),)),
        sample("a2", "a", predicted=((5, 10),)),
        sample("b0", "b", predicted=((0, 10),)),
    ]
    scores = temporal_scores(samples)
    assert scores["miou"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert scores["miou_per_question"] == pytest.approx((1 + 0 + 0 + 0.5) / 4)
    assert scores["p_at_0.5"] == pytest.approx((1 / 3 + 1) / 2)  # an IoU of exactly 0.5 counts
    assert scores["p_at_0.7"] == pytest.approx((1 / 3 + 0) / 2)
    assert scores["p_at_0.3_per_question"] == 0.5
    low, high = scores["miou_interval"]
    assert low <= scores["miou"] <= high


def test_an_iou_at_a_level_counts_whatever_the_rounding():
    at_half = sample(truth=((0.2, 0.8),), predicted=((0.2, 0.5),))
    assert sample_iou(at_half) < 0.5  # 0.4999999999999999
    assert temporal_scores([at_half])["p_at_0.5"] == 1
    assert reaches(0.5 - 1e-10, 0.5)
    assert not reaches(0.5 - 1e-8, 0.5)


def test_failed_questions_count_as_zero_and_are_reported():
    samples = [sample("a", "a"), sample("b", "b", predicted=(), error="b.mp4: no frames")]
    assert temporal_scores(samples)["miou"] == 0.5
    assert temporal_scores(samples)["fallback_rate"] == 0
    assert coverage_scores(samples) == {"questions": 2, "videos": 2, "scored": 1, "failed": 1, "coverage": 0.5}


def test_a_failed_question_is_never_scored_as_an_answer():
    assert sample_iou(sample(predicted=((0, 5),), error="stopped")) == 0
    failed = text_scores([sample(truth=(), predicted=(), truth_text="a", prediction_text="a", error="stopped")])
    assert (failed["text_questions"], failed["explanation_questions"]) == (1, 0)
    assert failed["text_accuracy"] == failed["text_f1"] == failed["text_rouge_l"] == 0
    explained = text_scores([sample(truth_text="a", prediction_text="a", error="stopped")])
    assert explained["explanation_f1"] == explained["explanation_rouge_l"] == 0


def test_what_is_said_beside_the_times_is_scored_by_itself():
    samples = [
        sample(truth_text="It spins.", prediction_text="it spins"),
        sample(truth_text="It spins twice.", prediction_text="It grows."),
        sample(truth_text="", prediction_text="It grows."),
    ]
    scores = text_scores(samples)
    assert (scores["text_questions"], scores["text_f1"], scores["explanation_questions"]) == (0, None, 2)
    assert scores["explanation_f1"] == pytest.approx((1 + 2 / 5) / 2)


def test_fallback_is_counted_and_scored_both_ways():
    samples = [sample("a", "a", predicted=((0, 10),), fallback=True), sample("b", "b")]
    scores = temporal_scores(samples)
    assert scores["fallback_rate"] == 0.5
    assert scores["miou"] == pytest.approx(0.75)
    assert scores["miou_without_fallback"] == pytest.approx(0.5)


def test_one_true_span_is_compared_with_the_first_answered():
    assert sample_iou(sample(predicted=((0, 5), (7, 9)))) == 1
    assert sample_iou(sample(truth=((0, 2), (7, 9)), predicted=((7, 9), (0, 2)))) == 1
    assert sample_iou(sample(truth=((0, 2), (7, 9)), predicted=((0, 2),))) == 0.5


def test_text_accuracy_ignores_case_only():
    texts = [("Circle", "circle "), ("circle", "a circle"), ("3", "3")]
    samples = [
        sample(str(i), truth=(), predicted=(), truth_text=truth, prediction_text=answer)
        for i, (truth, answer) in enumerate(texts)
    ]
    assert text_scores(samples)["text_accuracy"] == pytest.approx(2 / 3)
    assert temporal_scores(samples)["miou"] is None


def test_bootstrap_is_seeded_and_collapses_without_spread():
    values = [i * i / 900 for i in range(30)]
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)
    assert bootstrap_interval([0.5] * 9) == [0.5, 0.5]
    assert bootstrap_interval([]) is None
