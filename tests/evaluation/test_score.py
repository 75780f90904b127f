"""Scoring a file of answers: agreement with an independent scorer, files that are damaged, the command's output."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmllm.datasets.records import Question
from mmllm.errors import InputError
from mmllm.evaluation.report import score_table
from mmllm.evaluation.samples import Sample, read_samples, write_samples
from mmllm.evaluation.score import score, score_file
from mmllm.times.answers import Answer, Span, parse_answer
from mmllm.times.vocabulary import TimeTokens


def answered(count=60, seed=0):
    """Answered questions as a model would leave them: right, wrong, swapped, silent, failed, and some by text."""
    generator = np.random.default_rng(seed)
    samples = []
    for i in range(count):
        duration_s = round(float(generator.uniform(5, 90)), 2)
        truth = np.sort(generator.uniform(0, duration_s, 2)).round(2)
        about_text = i % 5 == 4
        asked = Sample(
            question_id=f"v{i % 9}_{i}",
            vid=f"v{i % 9}",
            family=["visible", "next", "shape"][2 if about_text else i % 2],
            question="When – é?",
            duration_s=duration_s,
            truth_spans=() if about_text else (Span(*map(float, truth)),),
            truth_text=["circle", "square"][i % 2],
            error="not asked",
        )
        near = np.clip(truth + generator.normal(0, duration_s / 9, 2), 0, None).round(2)
        raw = "circle" if about_text else f"<{near[0]}> <{near[1]}> It is then." if i % 7 else "I do not know."
        answer = parse_answer(raw, duration_s)
        samples.append(replace(asked, error="no frames") if i % 13 == 0 else asked.answered(answer))
    return samples


@pytest.fixture
def file(tmp_path) -> Path:
    write_samples(tmp_path / "samples.jsonl", answered())
    return tmp_path / "samples.jsonl"


def independent_scores(path):
    videos, texts = {}, []
    for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        if not row["truth"]["spans"]:
            texts.append(not row["error"] and row["truth"]["text"].lower() == row["prediction"]["text"].lower())
            continue
        (a, b), (c, d) = row["truth"]["spans"][0], (row["prediction"]["spans"] or [[0, 0]])[0]
        both = max(0, min(b, d) - max(a, c))
        score = 0 if row["error"] else both / ((b - a) + (d - c) - both)
        videos.setdefault(row["vid"], []).append([score, *(score >= level for level in (0.3, 0.5, 0.7))])
    return np.mean([np.mean(rows, axis=0) for rows in videos.values()], axis=0), np.mean(texts)


def test_an_independent_scorer_agrees(file):
    scores = score_file(file)
    times, text_accuracy = independent_scores(file)
    keys = ["miou", "p_at_0.3", "p_at_0.5", "p_at_0.7"]
    assert [scores[key] for key in keys] == pytest.approx(times.tolist(), abs=1e-12)
    assert scores["text_accuracy"] == pytest.approx(text_accuracy)


TEN_LINES = """
import json, sys, statistics as s
videos = {}
for row in map(json.loads, open(sys.argv[1], encoding="utf-8")):
    if row["truth"]["spans"]:
        a, b = row["truth"]["spans"][0]
        c, d = (row["prediction"]["spans"] or [[0, 0]])[0]
        both = max(0, min(b, d) - max(a, c))
        videos.setdefault(row["vid"], []).append(0 if row["error"] else both / (b - a + d - c - both))
print(s.mean(map(s.mean, videos.values())), s.mean(s.mean(v >= 0.5 for v in ious) for ious in videos.values()))
"""


def test_ten_lines_of_somebody_else_agree_with_the_command(file, tmp_path, capsys):
    from mmllm import cli

    (tmp_path / "ten.py").write_text(TEN_LINES)
    done = subprocess.run([sys.executable, tmp_path / "ten.py", file], capture_output=True, text=True, check=True)
    with pytest.raises(SystemExit) as ended:
        cli.main(["score", str(file), "--json"])
    assert ended.value.code == 0
    scores = json.loads(capsys.readouterr().out)
    assert [scores["miou"], scores["p_at_0.5"]] == pytest.approx([float(x) for x in done.stdout.split()], abs=1e-9)


def test_a_part_of_a_file_is_told(file, tmp_path, capsys):
    assert (score_file(file)["expected"], score_file(file)["missing"]) == (None, None)
    samples = [replace(sample, of=60) for sample in answered()]
    write_samples(file, samples[:30])
    assert (score_file(file)["expected"], score_file(file)["missing"]) == (60, 30)
    assert score(file) == 3
    out = " ".join(capsys.readouterr().out.split())
    assert "30 of the 60 questions that were asked are not in the file" in out
    write_samples(file, samples)
    assert score(file, json=True) == 0
    assert score(file, expected=61) == 3
    assert score(file, expected=59) == 3
    assert "1 questions more than the 59" in " ".join(capsys.readouterr().out.split())
    write_samples(file, [replace(sample, of=None) for sample in samples])
    assert score(file, expected=60) == 0


def test_answers_are_clipped_to_the_video(file):
    sample = replace(answered()[1], duration_s=3.0, truth_spans=(Span(0.5, 1.5),), fallback=False)
    for span, miou in ((Span(0.5, 99), 0.4), (Span(-5, 1.5), 2 / 3), (Span(50, 99), 0.0), (Span(0.5, 1.5), 1.0)):
        write_samples(file, [replace(sample, prediction_spans=(span,))])
        assert score_file(file)["miou"] == pytest.approx(miou)


def test_seeds_that_no_generator_takes_are_refused(file):
    for seed in (-1, 10**60):
        with pytest.raises(InputError, match=r"--seed = .*: must be a whole number"):
            score(file, seed=seed)


def test_all_promised_keys_are_there(file):
    scores = score_file(file)
    promised = {
        *("miou", "p_at_0.3", "p_at_0.5", "p_at_0.7", "best_constant_miou", "whole_video_miou", "fallback_rate"),
        *("coverage", "failed", "miou_interval", "text_accuracy", "most_frequent_text_accuracy"),
    }
    assert promised <= scores.keys()
    assert set(scores["families"]) == {"visible", "next", "shape"}
    for family in scores["families"].values():
        assert promised <= family.keys()
    assert scores["coverage"] == pytest.approx(1 - 5 / 60)
    assert scores["families"]["visible"]["text_accuracy"] is None
    assert scores["families"]["shape"]["miou"] is None
    json.dumps(scores, allow_nan=False)


def test_scores_are_repeatable_and_survive_a_round_trip(file, tmp_path):
    write_samples(tmp_path / "again.jsonl", read_samples(file))
    assert score_file(tmp_path / "again.jsonl") == score_file(file)
    assert read_samples(file) == answered()


def test_baselines_can_be_fitted_elsewhere(file, tmp_path):
    write_samples(tmp_path / "train.jsonl", answered(seed=1))
    own, elsewhere = score_file(file), score_file(file, tmp_path / "train.jsonl")
    assert own["best_constant_miou"] >= elsewhere["best_constant_miou"]
    assert own["best_constant_miou"] >= own["best_constant_overall_miou"] >= own["whole_video_miou"]
    assert own["miou"] == elsewhere["miou"]
    assert elsewhere["baselines_fitted_on"].endswith("train.jsonl")


def test_the_last_answer_to_a_question_counts(file):
    samples = answered()
    write_samples(file, [*samples, replace(samples[1], prediction_spans=samples[1].truth_spans, fallback=False)])
    scores = score_file(file)
    assert scores["duplicates"] == 1
    assert scores["questions"] == len(samples)
    assert scores["miou"] > score_without_change(file, samples)


def score_without_change(file, samples):
    write_samples(file, samples)
    return score_file(file)["miou"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not a scored question"),
        ("[]", "expected an object"),
        ("{}", "'truth' is missing"),
        ('{"truth": [], "prediction": {}}', "'truth' has the wrong type"),
    ],
)
def test_a_damaged_line_is_named(file, line, reason):
    file.write_text(file.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=f"line 61.*{reason}"):
        score_file(file)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("duration", 0),
        ("duration", "9"),
        ("duration", None),
        ("truth", {"spans": [[3, 1]], "text": ""}),
        ("truth", {"spans": [[float("nan"), 1]], "text": ""}),
        ("truth", {"spans": [[1]], "text": ""}),
        ("truth", {"spans": [[1, 3]], "absent": True, "text": ""}),
        ("truth", {"spans": [], "absent": 1, "text": ""}),
        ("fallback", 1),
        ("vid", True),
    ],
)
def test_impossible_values_are_refused(file, key, value):
    row = answered()[1].to_json()
    file.write_text(json.dumps({**row, key: value}) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match="line 1"):
        score_file(file)


def test_an_answer_without_times_and_without_the_whole_video_is_no_denial(file):
    row = {**answered()[1].to_json(), "fallback": True, "prediction": {"spans": [], "text": "", "raw": ""}}
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    scores = score_file(file)
    assert (scores["miou"], scores["fallback_rate"], scores["miss_rate"]) == (0, 1, 0)


def test_files_that_are_none(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    for name in ("missing.jsonl", "empty.jsonl", "binary.jsonl", "."):
        with pytest.raises(InputError):
            score_file(tmp_path / name)


def test_the_command_prints_a_table_or_json(file, capsys):
    score(file)
    table = capsys.readouterr().out
    assert "visible" in table
    assert "55 of 60 questions were answered" in " ".join(table.split())
    score(file, json=True)
    assert json.loads(capsys.readouterr().out) == score_file(file)


def test_an_answer_keeps_its_raw_text():
    asked = answered()[1]
    answer = parse_answer("<t20> <t49> Then.", 61.07, TimeTokens())
    assert isinstance(answer, Answer)
    sample = asked.answered(answer)
    assert sample.prediction_raw == "<t20> <t49> Then."
    assert sample.prediction_text == "Then."


def test_a_question_is_an_error_until_it_is_answered():
    question = Question(question_id="a_0", vid="a", question="When?", answer="<1> <2> Then.", duration_s=9.0)
    sample = Sample.asked(question)
    assert sample.truth_spans == (Span(1.0, 2.0),)
    assert (sample.truth_text, sample.error) == ("Then.", "not answered")
    done = sample.answered(parse_answer("<1> <2>", 9.0))
    assert not done.error
    assert done.failed("no frames") == replace(sample, error="no frames")


def test_parts_of_the_data_have_scores_of_their_own(tmp_path, file):
    samples = [replace(sample, group=("seen", "unseen")[number % 2]) for number, sample in enumerate(answered())]
    write_samples(file, samples)
    assert read_samples(file) == samples
    scores = score_file(file)
    assert set(scores["groups"]) == {"seen", "unseen"}
    for name, row in scores["groups"].items():
        part = [sample for sample in samples if sample.group == name]
        write_samples(tmp_path / f"{name}.jsonl", part)
        alone = score_file(tmp_path / f"{name}.jsonl")
        assert (row["questions"], row["miou"], row["coverage"]) == (len(part), alone["miou"], alone["coverage"])
    table = score_table(scores)
    assert [*table.columns[0].cells][-3:] == ["of seen", "of unseen", "all"]


def test_data_without_parts_has_no_such_scores(file):
    assert "groups" not in score_file(file)
