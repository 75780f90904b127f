"""TimeIT's questions, whose answers write times as words."""

import json

import pytest

from mmllm.datasets.formats import format_of, read_annotations, read_questions
from mmllm.times.answers import Span


def read(folder, *pairs, name="a.mp4", **fields):
    (folder / "a.mp4").touch()
    rows = [
        {"video": name, "QA": [{"q": question, "a": answer} for question, answer in pairs], "source": "x", **fields}
    ]
    (folder / "rows.json").write_text(json.dumps(rows))
    return read_annotations(folder / "rows.json")


@pytest.mark.parametrize(
    ("answer", "span", "text"),
    [
        ("The given query happens in 0.5 - 1.5 seconds.", (0.5, 1.5), "The given query happens."),
        ("13.0 - 20.0 seconds", (13, 20), ""),
        ("It is from 2 to 5.25 s.", (2, 5.25), "It is."),
        ("From 2 s to 5 s, he chops.", (2, 5), "he chops."),
        ("0 – 9 seconds, a cat sits.", (0, 9), "a cat sits."),
    ],
)
def test_one_interval_is_the_span_of_its_answer(tmp_path, answer, span, text):
    (dialogue,) = read(tmp_path, ("When does he chop?", answer)).items
    assert [turn.text for turn in dialogue.turns] == ["When does he chop?", text]  # the question is as it was asked
    assert dialogue.turns[1].spans == (Span(*map(float, span)),)
    (question,) = read_questions(tmp_path / "rows.json").items
    assert question.truth().spans == (Span(*map(float, span)),)


def test_several_intervals_stay_before_their_sentences(tmp_path):
    answer = "90 - 102 seconds, spread margarine on bread. 114 - 127 seconds, place cheese."
    (dialogue,) = read(tmp_path, ("What happens?", answer)).items
    assert dialogue.turns[1].text == "<90.0> <102.0> spread margarine on bread. <114.0> <127.0> place cheese."
    assert not dialogue.turns[1].spans


def test_answers_without_times_stay_answers(tmp_path):
    result = read(tmp_path, ("When?", "In 1 - 2 seconds."), ("Is it 3 o'clock?", "No, 4 - 2 is two."))
    assert [dialogue.turns[0].text for dialogue in result.items] == ["When?", "Is it 3 o'clock?"]
    assert result.items[1].turns[1].text == "No, 4 - 2 is two."


def test_rows_are_told_apart_from_those_of_nextqa(tmp_path):
    read(tmp_path, ("what is it", "a ball"))
    assert format_of(tmp_path / "rows.json") == "nextqa"
    read(tmp_path, ("what is it", "a ball"), ("when", "at 82 seconds"))
    assert format_of(tmp_path / "rows.json") == "timeit"
    row = {"video": "a.mp4", "QA": [{"q": "When?", "a": "In 1 - 2 seconds."}]}
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(row)}\n")
    assert len(read_annotations(tmp_path / "rows.jsonl").items) == 2
    (tmp_path / "row.jsonl").write_text(json.dumps(row))
    assert len(read_annotations(tmp_path / "row.jsonl").items) == 1


def test_bad_rows(tmp_path):
    result = read(tmp_path, ("When?", "In 90 - 150 seconds."), ("When?", "In 2 - 1 seconds."), duration=3)
    assert [problem.where for problem in result.bad] == ["record 1, QA 1", "record 1, QA 2"]
    assert "outside of the video, which lasts 3 s" in result.bad[0].reason
    assert read(tmp_path, ("When?", "In 1 - 2 seconds."), name="gone.mp4").missing == ["gone.mp4"]
