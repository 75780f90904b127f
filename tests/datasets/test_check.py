"""`mmllm check`: the published numbers of the published files, and what is wrong with damaged ones."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmllm.commands.check import check
from mmllm.datasets.check import check_annotations
from mmllm.errors import InputError, PartialFailure

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"


def published(name):
    if not (DATA / name).exists():
        pytest.skip("the published annotations are not beside the repository")
    return DATA / name


def test_numbers_of_activitynet_captions():
    summary = check_annotations(published("activitynet/val_1.json.gz"))
    assert (summary["videos"], summary["events"]) == (4_917, 17_505)
    assert 100 * summary["whole_video_miou_per_video"] == pytest.approx(36.9, abs=0.1)
    assert 100 * summary["whole_video_miou_per_event"] == pytest.approx(32.3, abs=0.1)
    assert 100 * summary["whole_video_p_at_0.5"] == pytest.approx(22.7, abs=0.1)
    ceilings = {"10": 72.2, "25": 86.2, "50": 92.4, "100": 95.9, "200": 98.3}
    assert {count: 100 * score for count, score in summary["self_iou"].items()} == pytest.approx(ceilings, abs=0.2)


@pytest.mark.parametrize(
    ("name", "videos", "events", "questions"),
    [
        ("activitynet/train.json.gz", 10_005, 37_395, 0),
        ("activitynet/val_2.json.gz", 4_885, 17_031, 0),
        ("youcook2/train.json.gz", 1_333, 10_337, 0),
        ("nextqa/train_oe.csv.gz", 3_870, 0, 37_523),
    ],
)
def test_counts_of_published_files(name, videos, events, questions):
    summary = check_annotations(published(name))
    assert (summary["videos"], summary["events"], summary["questions"]) == (videos, events, questions)
    assert summary["out_of_vocabulary_time_tokens"] == 0
    assert summary["bad_rows"] == (4 if "activitynet/train" in name else 0)  # two reversed events, two of no length
    assert summary["missing_videos"] is None


def test_the_command_line_prints_the_published_numbers(capsys):
    from mmllm.cli import main

    for name, expected in {"activitynet/val_1": (4_917, 17_505, 36.9), "youcook2/val": (457, 3_492, 7.3)}.items():
        file = str(published(f"{name}.json.gz"))
        with pytest.raises(SystemExit) as done:
            main(["check", file, "--json"])
        assert done.value.code == 0
        summary = json.loads(capsys.readouterr().out)
        assert (summary["videos"], summary["events"]) == expected[:2]
        assert 100 * summary["whole_video_miou_per_video"] == pytest.approx(expected[2], abs=0.1)
        with pytest.raises(SystemExit):
            main(["check", file])
        assert f"{expected[2]} %" in capsys.readouterr().out


@pytest.fixture
def file(tmp_path):
    rows = {
        "v_one": {"duration": 10, "QA": [{"q": "When?", "a": "<0> <10> Then."}, {"q": "When?", "a": "<0> <2> Then."}]},
        "v_two": {"duration": 10, "QA": [{"q": "When?", "a": "<2> <10.5> Then."}]},
        "v_bad": {"duration": 0, "QA": [{"q": "When?", "a": "<0> <2> Then."}]},
    }
    (tmp_path / "train.json").write_text(json.dumps(rows))
    return tmp_path / "train.json"


def test_questions_about_time(file):
    summary = check_annotations(file)
    assert (summary["videos"], summary["questions"], summary["events"]) == (2, 3, 3)
    assert summary["whole_video_miou_per_video"] == pytest.approx((0.6 + 0.8) / 2)
    assert summary["whole_video_miou_per_event"] == pytest.approx(2 / 3)
    assert summary["whole_video_p_at_0.5"] == pytest.approx(2 / 3)
    assert summary["out_of_vocabulary_time_tokens"] == 1
    assert (summary["rows"], summary["kept"], summary["bad_rows"]) == (4, 3, 1)
    assert summary["refused"] == [
        "bad row: record 3 (v_bad), QA 1: 'duration' must be a positive number of seconds, not 0"
    ]
    assert summary["problems"] == [
        *summary["refused"],
        "repaired: record 2 (v_two), QA 1: the interval [2, 10.5] is not inside the video, which lasts 10 s by its "
        "annotation; it was clipped",
    ]


def test_the_command(file, capsys):
    with pytest.raises(PartialFailure, match="1 rows or videos cannot be used") as failure:
        check(file, json=True)
    assert failure.value.exit_code == 3
    assert json.loads(capsys.readouterr().out) == check_annotations(file)
    with pytest.raises(PartialFailure):
        check(file)
    out = " ".join(capsys.readouterr().out.split())
    assert "whole video miou per video 70.0 %" in out
    assert "record 3 (v_bad)" in out


def test_strict_reading_repairs_nothing(tmp_path):
    row = {"duration": 10, "timestamps": [[5, 10.5]], "sentences": ["a"]}
    (tmp_path / "a.json").write_text(json.dumps({"v_a": row}))
    check(tmp_path / "a.json")
    with pytest.raises(PartialFailure):
        check(tmp_path / "a.json", strict=True)


def encode(path, frames, fps=10):
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width = stream.height = 32
        for shade in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), shade, dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_videos_are_looked_for_and_opened(file, tmp_path):
    videos = tmp_path / "videos"
    (videos / "v_folder").mkdir(parents=True)
    (videos / "v_empty").mkdir()
    for number in range(25):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(videos / "v_folder" / f"{number:06d}.jpg")
    (videos / "v_text.mp4").write_text("not a video")
    encode(videos / "v_good.mp4", 50)
    encode(videos / "v_long.mp4", 50)
    encode(videos / "v_short.mp4", 1)
    names = ("good", "long", "short", "text", "folder", "empty", "gone")
    durations = {name: {"long": 60, "short": 0.1}.get(name, 5) for name in names}
    rows = {f"v_{name}": {"duration": d, "QA": [{"q": "When?", "a": "<0> <1>"}]} for name, d in durations.items()}
    file.write_text(json.dumps(rows))
    summary = check_annotations(file, videos)
    count_names = ("missing_videos", "unreadable_videos", "short_videos", "other_durations")
    counts = {name: summary[name] for name in count_names}
    assert counts == {"missing_videos": 1, "unreadable_videos": 2, "short_videos": 1, "other_durations": 1}
    assert summary["videos"] == 7
    problems = " ".join(summary["problems"])
    assert "missing: v_gone" in problems
    assert "v_long.mp4 is annotated with 60.00 s but lasts 5.00 s" in problems
    unopened = check_annotations(file, videos, probe=False)
    assert (unopened["missing_videos"], unopened["unreadable_videos"]) == (1, None)
    with pytest.raises(PartialFailure):
        check(file, videos)


def test_dialogues_are_looked_for_beside_their_file(tmp_path):
    encode(tmp_path / "a.mp4", 30)
    rows = [
        {"video": name, "question": "?", "answer": "a", "spans": [[0, 1]], "duration": 3} for name in ("a.mp4", "b")
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    summary = check_annotations(tmp_path / "rows.jsonl")
    assert (summary["format"], summary["videos"], summary["events"]) == ("dialogues", 1, 1)
    assert (summary["missing_videos"], summary["unreadable_videos"], summary["bad_rows"]) == (1, 0, 1)


def test_files_that_are_none(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        check(tmp_path / "missing.json")
    with pytest.raises(InputError, match="cannot be read"):
        check(Path(os.devnull).parent)


def test_images_are_opened_too(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    (tmp_path / "empty.png").touch()
    (tmp_path / "script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    rows = [{"image": f"{name}.png", "question": "What?", "answer": "It."} for name in ("good", "empty", "script")]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    summary = check_annotations(tmp_path / "rows.jsonl")
    assert summary["unreadable_images"] == 2
    assert "empty.png: not a readable image: the file is empty" in summary["problems"][0]
    assert "script.png: not a readable image: a PostScript file" in summary["problems"][1]


@pytest.mark.parametrize("address", ["https://example.org/a//b.mp4?x=1", "s3://bucket/a.mp4"])
def test_addresses_in_rows_are_printed_as_written(address, tmp_path):
    plain = {"video": address, "question": "?", "answer": "a"}
    content = [{"type": "video_url", "video_url": {"url": address}}, {"type": "text", "text": "?"}]
    chat = {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "a"}]}
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, [plain, chat])))
    summary = check_annotations(tmp_path / "rows.jsonl")
    assert summary["bad_rows"] == 2
    assert all(f"{address}: an address; only local files are read" in problem for problem in summary["problems"])


def test_the_nearest_name_of_a_missing_video_is_shown(tmp_path):
    encode(tmp_path / "Cook 1.mp4", 5)
    rows = [{"video": "cook_1.MP4", "question": "?", "answer": "a"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert "did you mean" in check_annotations(tmp_path / "rows.jsonl")["problems"][0]
