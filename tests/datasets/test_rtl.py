"""ActivityNet-RTL files: both schemas, frame folders, and every kind of bad row named and counted."""

import gzip
import json

import pytest

from mmllm.datasets.rtl import read_rtl
from mmllm.errors import InputError
from mmllm.times.answers import Span

TEST_ROW = {
    "vid": "AbC_EfGh-jK",
    "question_id": "AbC_EfGh-jK_0",
    "question": " When is the cook not using the stove? ",
    "answer": "<12.4> <30> The cook is away between <12.4> and <30>. He chops onions from <2> to <3>.",
    "duration": 61.07,
}


def write(path, data):
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


def test_a_training_file(tmp_path):
    data = {
        "v_AbCdEfGhIjK": {
            "duration": 61.07,
            "QA": [{"q": "When? ", "a": "<0> <5.5> Then."}, {"q": "Who?", "a": "A cook – é.", "family": "who"}],
            "other": 1,
        },
        "v_second": {"duration": 9, "QA": [{"q": "When?", "a": "Never."}]},
    }
    result = read_rtl(write(tmp_path / "train.json", data))
    assert [q.question_id for q in result.items] == ["AbCdEfGhIjK_0", "AbCdEfGhIjK_1", "second_0"]
    assert result.totals() == {"rows": 3, "kept": 3, "bad_rows": 0, "repaired_rows": 0, "duplicates": 0}
    first, who, never = result.items
    assert (first.vid, first.question, first.duration_s) == ("AbCdEfGhIjK", "When?", 61.07)
    assert first.truth().spans == (Span(0.0, 5.5),)
    assert first.truth().text == "Then."
    assert [q.family for q in result.items] == ["temporal_reasoning", "who", "temporal_reasoning"]
    assert who.truth().spans == never.truth().spans == ()
    assert who.truth().text == "A cook – é."
    assert first.video is None
    with pytest.raises(InputError, match="AbCdEfGhIjK"):
        first.dialogue()


def test_a_test_file(tmp_path):
    result = read_rtl(write(tmp_path / "test.json", [TEST_ROW]))
    (question,) = result.items
    assert question.vid == "AbC_EfGh-jK"
    assert question.question == "When is the cook not using the stove?"
    assert question.truth().spans == (Span(12.4, 30.0),)  # one interval, as published, though the text names two
    assert question.truth().text == "The cook is away between <12.4> and <30>. He chops onions from <2> to <3>."


def test_videos_are_files_of_any_suffix_or_folders_of_frames(tmp_path):
    videos = tmp_path / "videos"
    (videos / "v_folder").mkdir(parents=True)
    for name in ("v_one.mp4", "v_two.webm", "three.mkv"):
        (videos / name).touch()
    qa = {"duration": 5, "QA": [{"q": "When?", "a": "<1> <2> Now."}]}
    data = {f"v_{vid}": qa for vid in ("one", "two", "three", "folder", "missing", "../videos/v_one")}
    result = read_rtl(write(tmp_path / "train.json", data), videos)
    assert [q.video.name for q in result.items] == ["v_one.mp4", "v_two.webm", "three.mkv", "v_folder"]
    assert [problem.where for problem in result.bad] == [
        "record 5 (v_missing), QA 1",
        "record 6 (v_../videos/v_one), QA 1",
    ]
    assert "v_missing is not in" in result.bad[0].reason
    with pytest.raises(InputError, match="folder of videos is missing"):
        read_rtl(tmp_path / "train.json", tmp_path / "elsewhere")


def test_a_question_becomes_a_dialogue(tmp_path):
    (tmp_path / "v_AbC_EfGh-jK.mp4").touch()
    (question,) = read_rtl(write(tmp_path / "test.json", [TEST_ROW]), tmp_path).items
    user_message, answer_message = question.dialogue().messages(str.upper)
    assert user_message["content"] == [
        {"type": "video", "video": str(tmp_path / "v_AbC_EfGh-jK.mp4")},
        {"type": "text", "text": "WHEN IS THE COOK NOT USING THE STOVE?"},  # a question may name seconds, too
    ]
    assert answer_message == {"role": "assistant", "content": [{"type": "text", "text": TEST_ROW["answer"].upper()}]}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"duration": 0}, "'duration' must be a positive"),
        ({"duration": -3}, "'duration' must be a positive"),
        ({"duration": float("nan")}, "'duration' must be a number"),
        ({"duration": "61"}, "'duration' must be a number"),
        ({"duration": True}, "'duration' must be a number"),
        ({"duration": 10**400}, "'duration' must be a number"),
        ({"question": "  "}, "'question' must be a text"),
        ({"answer": ["<1>", "<2>"]}, "'answer' must be a text"),
        ({"answer": "It happens at <5> only."}, "a start and an end"),
        ({"vid": None}, "'vid' must be a text"),
        ({"family": 3}, "'family' must be a text"),
    ],
)
def test_bad_rows_of_a_test_file(tmp_path, change, reason):
    path = write(tmp_path / "test.json", [TEST_ROW, {**TEST_ROW, "question_id": "other", **change}, TEST_ROW, [], {}])
    result = read_rtl(path)
    assert [q.question_id for q in result.items] == ["AbC_EfGh-jK_0"]
    assert [problem.where for problem in result.bad] == ["record 2", "record 3", "record 4", "record 5"]
    assert reason in result.bad[0].reason
    assert result.duplicates == ["AbC_EfGh-jK_0"]
    assert result.totals()["bad_rows"] == 4
    with pytest.raises(InputError, match=r"test\.json, record 2: "):
        read_rtl(path, policy="raise")


def test_a_family_may_be_answered_by_text(tmp_path):
    row = {**TEST_ROW, "family": "which_digit", "answer": "seven"}
    (question,) = read_rtl(write(tmp_path / "val.json", [row])).items
    assert question.truth().spans == ()
    assert question.truth().text == "seven"


def test_bad_rows_of_a_training_file(tmp_path):
    data = {
        "v_a": {"duration": 5, "QA": [{"q": "When?"}, {"q": "When?", "a": "Now."}, 7]},
        "v_b": {"QA": [{"q": "When?", "a": "Now."}]},
        "v_c": {"duration": 5, "QA": "none"},
        "v_d": [],
        "v_e": {"duration": 5, "QA": []},
    }
    result = read_rtl(write(tmp_path / "train.json", data))
    assert [q.question_id for q in result.items] == ["a_1"]
    assert [str(problem) for problem in result.bad] == [
        "record 1 (v_a), QA 1: the key 'a' is missing",
        "record 1 (v_a), QA 3: expected an object with the key 'q', not 7",
        "record 2 (v_b), QA 1: the key 'duration' is missing",
        "record 3 (v_c), QA 1: 'QA' must be a list, not 'none'",
        "record 4 (v_d), QA 1: expected an object with the key 'QA', not []",
    ]


def test_keys_that_occur_twice_are_reported(tmp_path):
    entry = '"v_a": {"duration": 5, "QA": [{"q": "When?", "a": "Now."}]}'
    result = read_rtl(write(tmp_path / "train.json", f"{{{entry}, {entry}}}"))
    assert result.duplicates == ["v_a"]
    assert len(result.items) == 1


@pytest.mark.parametrize("data", ["", "{", "3", "null", '{"a": }', "[" * 100_000])
def test_files_that_are_no_annotations(tmp_path, data):
    with pytest.raises(InputError, match="file"):
        read_rtl(write(tmp_path / "file.json", data))


def test_files_that_cannot_be_read(tmp_path):
    for name, data in {"latin.json": '{"é": 1}'.encode("latin-1"), "cut.json": gzip.compress(b"{}")[:-4]}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match="cannot be read"):
            read_rtl(tmp_path / name)
    with pytest.raises(InputError, match="cannot be read"):
        read_rtl(tmp_path / "missing.json")


def test_a_gzipped_file(tmp_path):
    (tmp_path / "test.json.gz").write_bytes(gzip.compress(json.dumps([TEST_ROW]).encode()))
    assert len(read_rtl(tmp_path / "test.json.gz").items) == 1


def own(**keys):
    return [{**TEST_ROW, "answer": "The cook is away.", **keys}]


def test_spans_beside_the_text_and_the_part_of_the_data(tmp_path):
    rows = own(spans=[[1.5, 4], [20, 30]], group="unseen", family="visible")
    rows += own(spans=[], question_id="b")
    result = read_rtl(write(tmp_path / "test.json", rows))
    several, never = result.items
    assert (several.group, several.family) == ("unseen", "visible")
    assert several.truth().spans == (Span(1.5, 4.0), Span(20.0, 30.0))
    assert several.truth().text == "The cook is away."
    assert (never.group, never.family, never.absent, never.spans) == ("", "temporal_reasoning", True, ())
    assert not result.unused.by_name
    train = {
        "v_AbCdEfGhIjK": {"duration": 61.07, "QA": [{"q": "When?", "a": "Then.", "spans": [[0, 9.5]], "group": "g"}]}
    }
    (question,) = read_rtl(write(tmp_path / "train.json", train)).items
    assert (question.spans, question.group) == ((Span(0.0, 9.5),), "g")


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"spans": [[4, 1]]}, "4"),
        ({"spans": [[1, 2, 3]]}, "a start and an end"),
        ({"spans": "1-2"}, "list"),
        ({"spans": [[50, 99]]}, "99"),
        ({"spans": [[1, 2]], "answer": "<1> <2> Then."}, "give one of both"),
        ({"spans": [[1, 2]], "group": 3}, "group"),
    ],
)
def test_bad_spans_and_groups_are_bad_rows(tmp_path, keys, reason):
    result = read_rtl(write(tmp_path / "test.json", own(**keys)))
    assert not result.items
    assert reason in result.bad[0].reason
