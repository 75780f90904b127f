"""The empty set of spans: "it does not happen" is an answer, and a truth."""

import json
from dataclasses import replace

import pytest

from mmllm.datasets.records import Question
from mmllm.errors import InputError
from mmllm.evaluation.baselines import BlindBaseline
from mmllm.evaluation.metrics import sample_iou, sample_set_iou, temporal_scores, text_scores
from mmllm.evaluation.samples import Sample, read_samples, write_samples
from mmllm.evaluation.score import score, score_samples
from mmllm.times.answers import Span, parse_answer

NEVER = Question(question_id="n", vid="v", question="When does it snow?", answer="", duration_s=10.0, absent=True)
ONCE = Question(question_id="o", vid="v", question="When?", answer="", duration_s=10.0, spans=(Span(2, 4),))


def answered(question, raw, number=0, **fields):
    asked = replace(question, question_id=f"{question.question_id}{number}", **fields)
    return Sample.asked(asked).answered(parse_answer(raw, 10.0))


@pytest.mark.parametrize(
    ("question", "raw", "score"),
    [
        (NEVER, "It does not happen.", 1),
        (NEVER, "<2> <4> Then.", 0),
        (NEVER, "I cannot say.", 0),  # no times: the whole video
        (ONCE, "<2> <4> Then.", 1),
        (ONCE, "It does not happen.", 0),
        (ONCE, "I cannot say.", 0.2),
    ],
)
def test_the_empty_set_agrees_with_itself_alone(question, raw, score):
    sample = answered(question, raw)
    assert sample.timed
    assert sample_iou(sample) == sample_set_iou(sample) == score
    failed = sample.failed("no frames")
    assert sample_iou(failed) == sample_set_iou(failed) == 0


def test_false_alarms_and_misses_stand_beside_miou():
    samples = [
        answered(NEVER, "It does not happen.", 1),
        answered(NEVER, "<2> <4> Then.", 2),
        answered(NEVER, "I cannot say.", 3),
        answered(NEVER, "It does not happen.", 4).failed("no frames"),
        answered(ONCE, "<2> <4> Then.", 5),
        answered(ONCE, "It does not happen.", 6),
        answered(ONCE, "I cannot say.", 7),
        answered(ONCE, "<2> <4>", 8).failed("no frames"),
    ]
    scores = temporal_scores(samples)
    assert scores["temporal_questions"] == scores["absent_questions"] == 4
    assert scores["false_alarm_rate"] == pytest.approx(2 / 3)
    assert scores["miss_rate"] == pytest.approx(1 / 3)
    assert scores["miou"] == pytest.approx((1 + 0 + 0.2 + 0) / 4)
    assert scores["set_miou"] == pytest.approx((1 + 0 + 0 + 0 + 1 + 0 + 0.2 + 0) / 8)
    assert scores["r1_at_0.5"] == scores["p_at_0.5"] == 0.25
    assert text_scores(samples)["text_questions"] == 0


def test_answers_without_such_questions_have_the_scores_of_before():
    samples = [answered(ONCE, "<2> <4> Then.", 1), answered(ONCE, "<3> <4>", 2)]
    scores = temporal_scores(samples)
    assert scores["miou"] == scores["set_miou"] == 0.75
    assert scores["false_alarm_rate"] is None
    assert scores["miss_rate"] == scores["absent_questions"] == 0
    with_others = temporal_scores([*samples, answered(NEVER, "<1> <2>", 3)])
    assert {key: with_others[key] for key in ("miou", "p_at_0.5", "map", "fallback_rate")} == {
        key: scores[key] for key in ("miou", "p_at_0.5", "map", "fallback_rate")
    }


def test_blind_baselines_do_not_learn_from_what_does_not_happen():
    samples = [answered(ONCE, "<2> <4>", 1), answered(NEVER, "<1> <9>", 2, family="never")]
    baseline = BlindBaseline.fit(samples)
    assert set(baseline.by_family) == {""}
    assert baseline.texts == {}
    scores = score_samples(samples, baseline)
    assert scores["whole_video_miou"] == 0.2
    assert scores["families"]["never"]["whole_video_miou"] is None


def test_samples_are_written_and_read(tmp_path):
    samples = [answered(NEVER, "It does not happen.", 1), answered(ONCE, "it does not happen: it rains", 2)]
    write_samples(tmp_path / "samples.jsonl", samples)
    assert read_samples(tmp_path / "samples.jsonl") == samples
    assert samples[1].prediction_text == "it rains"
    assert [sample.denied for sample in samples] == [True, True]


def test_a_line_of_before_is_read_as_before(tmp_path):
    row = answered(ONCE, "<2> <4>", 1).to_json()
    assert set(row["truth"]) == {"spans", "text"}
    text = {**row, "question_id": "t", "truth": {"spans": [], "text": "red"}, "duration": None}
    text["prediction"] = {"raw": "red", "spans": [], "text": "red"}
    file = tmp_path / "samples.jsonl"
    file.write_text("\n".join(map(json.dumps, [row, text])))
    timed, plain = read_samples(file)
    assert timed.timed
    assert not plain.timed
    assert text_scores([timed, plain])["text_accuracy"] == 1


def test_a_truth_cannot_happen_and_not_happen():
    with pytest.raises(InputError, match="has intervals, and is said not to happen"):
        replace(ONCE, absent=True)
    with pytest.raises(InputError, match="has true spans, and is said not to happen"):
        replace(Sample.asked(ONCE), absent=True)


def test_the_command_tells_of_both(tmp_path, capsys):
    samples = [answered(NEVER, "<1> <2>", 1), answered(ONCE, "It does not happen.", 2), answered(ONCE, "<2> <4>", 3)]
    write_samples(tmp_path / "samples.jsonl", samples)
    score(tmp_path / "samples.jsonl")
    said = " ".join(capsys.readouterr().out.split())
    assert "missed" in said
    assert "False alarms: 100.0 % in 1 questions about what does not happen; missed: 50.0 % of what does." in said
    write_samples(tmp_path / "samples.jsonl", samples[2:])
    score(tmp_path / "samples.jsonl")
    said = capsys.readouterr().out.split("fallback: answers")[0]
    assert "missed" not in said
    assert "alarm" not in said
