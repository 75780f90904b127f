"""Blind baselines: the whole video, the best constant, the most frequent text."""

import numpy as np
import pytest

from mmllm.errors import InputError
from mmllm.evaluation.baselines import WHOLE_VIDEO, BlindBaseline, ConstantInterval, best_constant, ceiling
from mmllm.evaluation.metrics import over_videos, sample_iou
from mmllm.evaluation.samples import Sample
from mmllm.times.answers import Span


def question(question_id, vid, family, truth=(), text="", duration_s=20.0):
    spans = tuple(Span(*ends) for ends in truth)
    return Sample(
        question_id=question_id,
        vid=vid,
        family=family,
        question="When?",
        duration_s=duration_s,
        truth_spans=spans,
        truth_text=text,
        error="not asked",
    )


def test_the_ceiling_is_what_is_left_of_the_truth_when_it_is_written():
    from mmllm import registry

    asked = [question("a", "a", "", truth=[(1.23, 4.56)], duration_s=10.0), question("b", "b", "", text="circle")]
    coarse, text = registry.build("time", "tokens", count=11), registry.build("time", "text:decimals=1")
    assert ceiling(asked, coarse) == pytest.approx(3.33 / 4)  # read back as 1 to 5
    assert ceiling(asked, text) == pytest.approx(3.33 / 3.4)  # 1.2 to 4.6
    assert ceiling(asked[1:], text) is None


def random_questions(count, seed=0, spans=1):
    generator = np.random.default_rng(seed)
    for i in range(count):
        duration_s = float(generator.uniform(5, 100))
        truth = np.sort(generator.uniform(0, duration_s, (spans, 2)), axis=1)
        yield question(str(i), f"v{i % 7}", "f", truth.tolist(), duration_s=duration_s)


def miou(constant, samples):
    return over_videos([constant.answer(sample) for sample in samples], sample_iou)


def test_the_same_relative_interval_is_found():
    samples = [question(str(d), str(d), "f", [[0.2 * d, 0.6 * d]], duration_s=d) for d in (10.0, 33.0, 700.0)]
    interval = best_constant(samples)
    assert (interval.start, interval.end) == (pytest.approx(0.2), pytest.approx(0.6))


@pytest.mark.parametrize("spans", [1, 3])
def test_no_interval_of_the_grid_is_better(spans):
    samples = list(random_questions(20, spans=spans))
    best = miou(best_constant(samples), samples)
    for start, end in np.sort(np.random.default_rng(1).integers(0, 51, (200, 2)), axis=1) / 50:
        assert miou(ConstantInterval(start=start, end=end), samples) <= best + 1e-9


def test_families_have_their_own_constant_and_text():
    samples = [
        question("0", "a", "early", [[0, 4]]),
        question("1", "b", "late", [[16, 20]]),
        question("2", "b", "shape", text="Circle"),
        question("3", "c", "shape", text="circle"),
        question("4", "d", "shape", text="square"),
    ]
    baseline = BlindBaseline.fit(samples)
    answers = [baseline.answer(sample) for sample in samples]
    assert [sample_iou(answer) for answer in answers[:2]] == [pytest.approx(1), pytest.approx(1)]
    assert [answer.prediction_text for answer in answers[2:]] == ["circle"] * 3
    assert not any(answer.error for answer in answers)
    unseen = baseline.answer(question("5", "e", "unseen", [[0, 20]]))
    assert unseen.prediction_spans == baseline.overall.answer(samples[0]).prediction_spans


def test_without_questions_about_time():
    with pytest.raises(InputError):
        best_constant([question("0", "a", "shape", text="circle")])
    assert BlindBaseline.fit([question("0", "a", "shape", text="circle")]).overall == WHOLE_VIDEO
    assert BlindBaseline.fit([]).by_family == {}


@pytest.mark.parametrize("ends", [(-0.1, 1), (0.5, 0.4), (0, 1.1), (float("nan"), 1)])
def test_impossible_constants_are_refused(ends):
    with pytest.raises(InputError):
        ConstantInterval(start=ends[0], end=ends[1])
