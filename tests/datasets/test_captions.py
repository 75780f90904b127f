"""Captioned videos: counts of the published files, repairs, targets equal to those of the time tokens."""

import json
from pathlib import Path

import pytest

from mmllm.datasets.captions import dense_caption_questions, localization_questions, read_captions
from mmllm.errors import InputError
from mmllm.times.answers import Span
from mmllm.times.vocabulary import TimeTokens

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
EVENTS_OF_BAD_ROWS = {"activitynet/train": 26}
ROW = {"duration": 50.0, "timestamps": [[30, 49.5], [0, 20], [0, 10]], "sentences": [" Third.", "second ", "  First. "]}


def write(tmp_path, data):
    (tmp_path / "train.json").write_text(json.dumps(data), encoding="utf-8")
    return tmp_path / "train.json"


@pytest.mark.parametrize(
    ("name", "videos", "events", "repaired", "bad"),
    [
        ("activitynet/train", 10_009, 37_421, 230, 4),
        ("activitynet/val_1", 4_917, 17_505, None, 0),
        ("activitynet/val_2", 4_885, 17_031, None, 0),
        ("youcook2/train", 1_333, 10_337, 0, 0),
        ("youcook2/val", 457, 3_492, 0, 0),
    ],
)
def test_published_files(name, videos, events, repaired, bad):
    path = DATA / f"{name}.json.gz"
    if not path.exists():
        pytest.skip("the published annotations are not beside the repository")
    result = read_captions(path)
    assert len(result.items) + bad == result.rows == videos
    assert sum(len(video.events) for video in result.items) == events - EVENTS_OF_BAD_ROWS.get(name, 0)
    assert len(result.bad) == bad
    assert all("ends before it starts" in row.reason or "has no length" in row.reason for row in result.bad)
    if repaired is not None:
        assert result.totals()["repaired_rows"] == repaired
    times = TimeTokens()
    for time_s, duration_s in result.outside:
        assert 0 <= times.encode_unclamped(time_s, duration_s) <= 99


def test_dense_captions_are_written_as_the_released_code_does(tmp_path):
    (video,) = read_captions(write(tmp_path, {"v_a": ROW})).items
    times = TimeTokens()
    for sort in (False, True):
        question = video.dense_caption("Tell.", sort=sort)
        expected = times.dense_caption_target(ROW["timestamps"], ROW["sentences"], 50.0, sort=sort)
        assert times.write(question.answer, 50.0) == expected
    assert dense_caption_questions(video)[0].family == "dense_captioning"


def test_events_are_asked_for_one_by_one(tmp_path):
    (video,) = read_captions(write(tmp_path, {"v_a": ROW})).items
    questions = localization_questions(video)
    assert [q.question_id for q in questions] == ["a_event_0", "a_event_1", "a_event_2"]
    assert '"first"' in questions[2].question
    assert questions[0].truth().spans == (Span(30.0, 49.5),)
    assert TimeTokens().write(questions[0].answer, 50.0) == TimeTokens().event_target(30, 49.5, 50.0)


def test_times_are_clipped_if_the_policy_allows(tmp_path):
    path = write(tmp_path, {"v_a": {"duration": 10, "timestamps": [[2, 5], [8, 11]], "sentences": ["a", "b"]}})
    result = read_captions(path)
    assert [event.span for event in result.items[0].events] == [Span(2.0, 5.0), Span(8.0, 10.0)]
    clipped = "the interval [8, 11] is not inside the video, which lasts 10 s by its annotation; it was clipped"
    assert [str(problem) for problem in result.repaired] == [f"record 1 (v_a): {clipped}"]
    assert result.outside == [(11.0, 10.0)]
    skipped = read_captions(path, policy="skip")
    assert not skipped.items
    assert skipped.bad[0].reason == clipped
    with pytest.raises(InputError, match="is not inside the video"):
        read_captions(path, policy="raise")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sentences": ["one"]}, "3 timestamps but 1 sentences"),
        ({"timestamps": [[0, 1], [1], [2, 3]]}, "a start and an end"),
        ({"timestamps": [[0, 1], [1, "2"], [2, 3]]}, "an end must be a number"),
        ({"timestamps": [[0, 1], [float("nan"), 2], [2, 3]]}, "a start must be a number"),
        ({"timestamps": None}, "'timestamps' must be a list"),
        ({"sentences": ["one", "", "two"]}, "a sentence must be a text"),
        ({"duration": 0}, "positive number of seconds"),
    ],
)
def test_bad_rows(tmp_path, change, reason):
    result = read_captions(write(tmp_path, {"v_a": {**ROW, **change}, "b": ROW, "v_b": ROW}))
    assert [video.vid for video in result.items] == ["b"]
    assert reason in result.bad[0].reason
    assert result.duplicates == ["b"]


def test_a_row_that_fails_late_leaves_no_repair(tmp_path):
    row = {"duration": 10, "timestamps": [[8, 11], [8, None]], "sentences": ["a", "b"]}
    result = read_captions(write(tmp_path, {"v_a": row}))
    assert result.totals() == {"rows": 1, "kept": 0, "bad_rows": 1, "repaired_rows": 0, "duplicates": 0}


def test_other_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="not an object of videos"):
        read_captions(write(tmp_path, []))
