"""Times without an annotated duration are compared with the video; check, fine-tuning and evaluation agree."""

import json
import logging
import shutil
from pathlib import Path

import pytest
from PIL import Image

from mmllm import cli
from mmllm.datasets.check import check_annotations, inspect
from mmllm.errors import InputError
from mmllm.evaluation.run import read_benchmark
from mmllm.times.answers import Span
from mmllm.train.own_dialogues import checked_dialogues

CASES = Path(__file__).resolve().parents[1] / "data" / "cases"
GOOD = {"video": "cook.mp4", "question": "When?", "answer": "Then.", "spans": [[0.5, 1.5]]}


@pytest.fixture
def folder(tmp_path):
    """A folder with a video of three seconds, a folder of ten frames, and an image."""
    shutil.copy(CASES / "cook.mp4", tmp_path)
    (tmp_path / "frames").mkdir()
    for number in range(10):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(tmp_path / "frames" / f"{number:06}.png")
    shutil.copy(CASES / "f0.png", tmp_path)
    return tmp_path


def write(folder, *rows):
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def asked_by(read):
    """The names of the rows that are used; those of a refusal."""
    try:
        return [item.record_id if hasattr(item, "record_id") else item.question_id for item in read()]
    except InputError as refused:
        return str(refused)


BAD = {
    "outside": {**GOOD, "spans": [[90, 150]]},
    "far over the end": {**GOOD, "spans": [[1, 5]]},
    "no length": {**GOOD, "spans": [[1, 1]]},
    "reversed": {**GOOD, "spans": [[2, 1]]},
    "one of two": {**GOOD, "spans": [[0, 1], [4, 5]]},
    "stamps in the answer": {**GOOD, "spans": None, "answer": "<90> <150> Then."},
    "a stamp in the question": {**GOOD, "spans": None, "question": "What is at <90>?"},
    "outside of its annotation": {**GOOD, "duration": 3, "spans": [[3.2, 3.6]]},
    "a folder of frames": {**GOOD, "video": "frames", "spans": [[5, 6]]},
    "two videos": {**GOOD, "videos": ["cook.mp4"]},
    "a picture": {"image": "f0.png", "question": "When?", "answer": "Then.", "spans": [[0, 1]]},
    "a missing video": {**GOOD, "video": "gone.mp4"},
    "a misspelt label": {**GOOD, "spans": None, "span": [0, 1]},
    "an empty answer": {"video": "cook.mp4", "question": "What?", "answer": ""},
}


@pytest.mark.parametrize("row", BAD.values(), ids=BAD)
def test_a_bad_row_is_found_by_all(folder, row, caplog):
    file = write(folder, {**GOOD, "id": "good"}, {**row, "id": "bad"})
    summary = check_annotations(file)
    assert summary["bad_rows"] == 1
    (problem,) = summary["refused"]
    assert problem.startswith("bad row: line 2: ")
    with pytest.raises(SystemExit) as ended:
        cli.main(["check", str(file)])
    assert ended.value.code == 3
    assert problem in asked_by(lambda: checked_dialogues(file, None, skip_bad=False))
    assert asked_by(lambda: checked_dialogues(file, None, skip_bad=True)) == ["good"]
    benchmark = read_benchmark(file)
    assert [question.question_id for question in benchmark.questions] == ["good"]
    assert len(benchmark.bad_rows) == 1
    write(folder, row)
    assert "no question; line 1: " in asked_by(lambda: read_benchmark(file).questions).replace(": line", "; line")


def test_an_interval_outside_is_told_with_line_value_length_and_guess(folder):
    (problem,) = check_annotations(write(folder, GOOD, BAD["outside"]))["refused"]
    for part in ("line 2", "[90, 150]", "lasts 3 s", "frame numbers or milliseconds?"):
        assert part in problem


def test_an_end_a_little_over_is_clipped_and_told_by_all(folder, caplog):
    file = write(folder, {**GOOD, "spans": [[1, 3.9]]}, {**GOOD, "duration": 3, "spans": [[1, 3.9]]})
    summary = check_annotations(file)
    assert (summary["bad_rows"], summary["repaired_rows"], summary["refused"]) == (0, 2, [])
    assert all("is not inside the video, which lasts 3 s" in problem for problem in summary["problems"])
    with caplog.at_level(logging.WARNING):
        dialogues = checked_dialogues(file, None, skip_bad=False)
    assert caplog.text.count("it was clipped") == 2
    assert {dialogue.turns[1].spans for dialogue in dialogues} == {(Span(1.0, 3.0),)}
    benchmark = read_benchmark(file)
    assert {question.spans for question in benchmark.questions} == {(Span(1.0, 3.0),)}
    assert len(benchmark.notes) == 2
    assert check_annotations(file, policy="skip")["bad_rows"] == 2


def test_events_count_with_and_without_duration(folder):
    with_duration, without = ({**GOOD, "duration": 3}, GOOD)
    for rows in ([with_duration], [without]):
        summary = check_annotations(write(folder, *rows))
        assert summary["events"] == 1
        assert summary["whole_video_miou_per_video"] == pytest.approx(1 / 3)
    unopened = check_annotations(write(folder, without), probe=False)
    assert (unopened["events"], unopened["whole_video_miou_per_video"]) == (1, None)


def test_damaged_images_and_other_lengths_are_refused_by_check_and_training(folder):
    (folder / "f0.png").write_bytes((folder / "f0.png").read_bytes()[:200])
    file = write(
        folder,
        {"image": "f0.png", "question": "What?", "answer": "A dish."},
        {**GOOD, "duration": 60},
        {**GOOD, "id": "good"},
    )
    summary = check_annotations(file)
    assert (summary["unreadable_images"], summary["other_durations"]) == (1, 1)
    with pytest.raises(SystemExit) as ended:
        cli.main(["check", str(file)])
    assert ended.value.code == 3
    for problem in summary["refused"]:
        assert problem in asked_by(lambda: checked_dialogues(file, None, skip_bad=False))
    assert [dialogue.record_id for dialogue in inspect(file).usable.items] == ["good"]


def test_remarks_keep_nobody_from_training(folder, caplog):
    file = write(folder, {**GOOD, "id": "a", "source": "x"}, {**GOOD, "id": "a", "question": "<audio> When?"})
    assert check_annotations(file)["refused"] == []
    with caplog.at_level(logging.WARNING):
        assert asked_by(lambda: checked_dialogues(file, None, skip_bad=False)) == ["a", "a#2"]
    for remark in ("duplicate: a", "the key 'source'", "the placeholder <audio>"):
        assert remark in caplog.text
