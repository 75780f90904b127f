"""`"spans": []`: what is asked for does not happen. Other rows are read as before."""

import json

import pytest

from mmllm.datasets.check import check_annotations
from mmllm.datasets.dialogues import read_dialogues
from mmllm.datasets.formats import read_questions
from mmllm.datasets.stored import _from_json, _to_json
from mmllm.errors import InputError
from mmllm.times.answers import ABSENT, Span, absent_text, parse_answer

PLAIN = {"video": "a.mp4", "question": "When does it snow?", "answer": "The sun shines.", "spans": [], "duration": 10}
TURNS = {
    "video": "a.mp4",
    "duration": 10,
    "messages": [
        {"role": "user", "content": "<video>When does it snow?", "spans": []},
        {"role": "assistant", "content": "The sun shines.", "spans": []},
        {"role": "user", "content": "And when is there sun?"},
        {"role": "assistant", "content": "All the time.", "spans": [[0, 10]]},
        {"role": "user", "content": "Is it warm?"},
        {"role": "assistant", "content": "Yes."},
    ],
}


@pytest.fixture
def file(tmp_path):
    (tmp_path / "a.mp4").touch()

    def write(*rows):
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return tmp_path / "rows.jsonl"

    return write


def test_an_empty_set_is_an_answer_in_each_form(file):
    plain, turns = read_dialogues(file(PLAIN, TURNS)).items
    assert plain.turns[1].absent
    assert [turn.absent for turn in turns.turns] == [False, True, False, False, False, False]
    assert plain.turns[1].stamped == turns.turns[1].stamped == f"{ABSENT} The sun shines."


def test_it_is_a_question_about_time_without_intervals(file):
    never, always, warm = read_questions(file(TURNS)).items
    assert (never.absent, never.truth().spans, never.truth().text) == (True, (), "The sun shines.")
    assert (always.absent, always.truth().spans) == (False, (Span(0, 10),))
    assert (warm.absent, warm.truth().spans) == (False, ())
    assert always.history == (("When does it snow?", f"{ABSENT} The sun shines."),)
    assert never.dialogue().turns[1].stamped == f"{ABSENT} The sun shines."


def test_what_is_written_is_read_as_the_empty_set():
    for text in ("", "The sun shines.", "it does not happen: the sun shines", "It does not happen"):
        answer = parse_answer(absent_text(text), 10.0)
        assert answer.absent
        assert (answer.spans, answer.fallback) == ((), False)
    assert absent_text("") == ABSENT
    assert parse_answer(f"{ABSENT} The sun shines.</s>", 10.0).text == "The sun shines."
    assert absent_text("It does not happen.") == "It does not happen."


@pytest.mark.parametrize(
    "text", ["It does not happen before noon.", "He says it does not happen.", "Never.", "", "<4> It does not happen."]
)
def test_other_answers_without_times_stay_the_whole_video(text):
    answer = parse_answer(text, 10.0)
    assert (answer.spans, answer.fallback, answer.absent) == ((Span(0, 10),), True, False)


def test_times_count_more_than_the_words():
    assert parse_answer("It does not happen. <2> <4>", 10.0).spans == (Span(2, 4),)
    with pytest.raises(InputError, match="needs a start and an end"):
        parse_answer(ABSENT, 10.0, strict=True)


def test_it_is_kept_when_dialogues_are_stored(file):
    for dialogue in read_dialogues(file(PLAIN, TURNS)).items:
        assert _from_json(json.loads(json.dumps(_to_json(dialogue)))) == dialogue


def test_an_empty_set_beside_a_time_is_a_bad_row(file):
    row = {**PLAIN, "answer": "<2> <4> It snows."}
    (problem,) = read_dialogues(file(row)).bad
    assert problem.reason == "'spans' is empty, so that it does not happen, but the answer has a time in its text"


def test_check_counts_them(file):
    summary = check_annotations(file(PLAIN, TURNS), probe=False)
    assert (summary["absent"], summary["events"], summary["bad_rows"]) == (2, 1, 0)
    assert check_annotations(file({**PLAIN, "spans": [[1, 2]]}), probe=False)["absent"] is None
