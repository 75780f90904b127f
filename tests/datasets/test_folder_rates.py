"""How many images a second folders of frames have: by rows, by `--fps`, or five."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from mmllm.cli import main
from mmllm.datasets.check import check_annotations
from mmllm.datasets.dialogues import read_dialogues
from mmllm.datasets.folder_rates import folder_rates, with_rate
from mmllm.datasets.stored import store_dialogues
from mmllm.errors import InputError
from mmllm.evaluation.run import read_benchmark
from mmllm.preprocessing.clip_reader import ClipReader
from mmllm.preprocessing.frames import FrameTransform
from mmllm.train.features import FeatureCache
from mmllm.train.own_dialogues import checked_dialogues

CASES = Path(__file__).resolve().parents[1] / "data" / "cases"


def frames(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(folder / name)


def row(video: str = "slow", **fields) -> dict:
    return {"video": video, "question": "When?", "answer": "Then.", "spans": [[1, 2]], **fields}


@pytest.fixture
def data(tmp_path):
    """A folder of a minute at one image a second, and a way to write rows about it."""
    frames(tmp_path / "slow", [f"{number:06d}.png" for number in range(1, 61)])
    frames(tmp_path / "other", [f"{number:06d}.png" for number in range(1, 11)])

    def write(*rows: dict) -> Path:
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return tmp_path / "rows.jsonl"

    return write


def durations_told(file: Path, **options) -> list[str]:
    return [problem for problem in check_annotations(file, **options)["problems"] if problem.startswith("duration")]


def test_check_compares_frames_and_rate_with_the_duration(data):
    file = data(row(duration=60))
    (told,) = durations_told(file)
    assert "is annotated with 60.00 s but lasts 12.00 s: 60 frames; 1 a second, not 5?" in told
    assert "--fps" in told
    assert durations_told(file, fps=1.0) == []
    assert durations_told(data(row(duration=60, fps=1))) == []
    assert "2 a second, not 1?" in durations_told(data(row(duration=30, fps=1)))[0]
    assert durations_told(data(row(duration=60, fps=1)), fps=9.0) == []  # the row counts, not the option


@pytest.mark.parametrize("fps", [0, -1, "5", True, [5]])
def test_a_rate_of_a_row_that_is_none(fps, data):
    result = check_annotations(data(row(fps=fps), row()))
    assert result["bad_rows"] == 1
    assert "'fps' must be a positive number of images a second" in result["problems"][0]


def test_a_rate_for_a_file_is_refused(data, tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"x")
    result = check_annotations(data(row("clip.mp4", fps=5)), probe=False)
    assert "clip.mp4 is a file with its own times" in result["problems"][0]


def test_rates_of_rows_and_of_the_option(data):
    dialogues = read_dialogues(data(row(fps=1), row("other"))).items
    assert [dialogue.fps for dialogue in dialogues] == [1, None]
    rates = folder_rates(with_rate(dialogues, 2.0))
    assert {Path(path).name: rate for path, rate in rates.items()} == {"slow": 1, "other": 2}
    assert [question.fps for question in read_benchmark(data(row(fps=1), row("other")), fps=2.0).questions] == [1, 2]
    with pytest.raises(InputError, match="1 and 2 images a second"):
        folder_rates(read_dialogues(data(row(fps=1), row(fps=2))).items)


def test_an_option_without_a_folder_is_refused(data):
    file = CASES / "lecture_4h.jsonl"
    with pytest.raises(InputError, match="no row shows a folder"):
        read_benchmark(file, fps=5.0)
    with pytest.raises(InputError, match="no row shows a folder"):
        checked_dialogues(file, None, skip_bad=False, fps=5.0)


def test_clips_are_read_at_the_rate(data, tmp_path):
    dialogues = checked_dialogues(data(row(fps=1, duration=60)), None, skip_bad=False)
    reader = ClipReader(
        num_frames=4, transform=FrameTransform(size=8), folder_fps=5, folder_rates=folder_rates(dialogues)
    )
    assert reader(tmp_path / "slow").duration_s == 60
    assert reader(tmp_path / "other").duration_s == 2
    assert reader(str(tmp_path / "slow")).times_s[-1] == 59


def test_features_at_another_rate_are_others(tmp_path):
    (tmp_path / "slow").mkdir()
    cache = FeatureCache.__new__(FeatureCache)
    cache.folder, names = tmp_path, set()
    for rates in ({}, {str(tmp_path / "slow"): 1.0}, {str(tmp_path / "slow"): 2.0}):
        cache.processor = SimpleNamespace(folder_rates=rates)
        names.add(cache.path(tmp_path / "slow"))
    assert len(names) == 3


def test_stored_dialogues_keep_their_rate(data, tmp_path):
    stored, _, _ = store_dialogues(data(row(fps=1), row("other")), tmp_path, tmp_path / "arrow")
    assert [dialogue.fps for dialogue in stored] == [1, None]


def test_gaps_are_notes_and_broken_images_are_problems(data, tmp_path):
    (tmp_path / "other" / "000004.png").unlink()
    result = check_annotations(data(row(fps=1), row("other", duration=2)))
    assert (result["problems"], len(result["notes"])) == ([], 1)
    assert "9 frames have numbers from 1 to 10; 1 are missing" in result["notes"][0]
    (tmp_path / "other" / "000005.png").write_bytes(b"x" * 99)
    (tmp_path / "slow" / "000005.png").write_bytes(b"")
    result = check_annotations(data(row(fps=1), row("other", duration=2)))
    assert result["unreadable_videos"] == 2
    assert "000005.png" in result["problems"][0]
    assert "000005.png" in result["problems"][1]


@pytest.mark.parametrize("name", ["frames_applefiles", "frames_webp", "lecture_4h"])
def test_the_shared_cases_have_no_problem(name, capsys):
    result = check_annotations(CASES / f"{name}.jsonl")
    assert (result["problems"], result["notes"], result["items"]) == ([], [], 1)
    assert len(checked_dialogues(CASES / f"{name}.jsonl", None, skip_bad=False)) == 1
    with pytest.raises(SystemExit) as exit_:
        main(["check", str(CASES / f"{name}.jsonl")])
    assert exit_.value.code == 0


@pytest.mark.parametrize("command", [["check", "rows.jsonl"], ["eval", "default", "rows.jsonl"], ["info", "slow"]])
@pytest.mark.parametrize("fps", ["0", "-2", "nan"])
def test_a_rate_that_is_none_is_refused(command, fps, data, monkeypatch, capsys, tmp_path):
    data(row())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        main([*command, "--fps", fps])
    assert exit_.value.code == 2
    assert "--fps" in capsys.readouterr().err
