"""Folders of frames: which files count, in which order, and at which times."""

from __future__ import annotations

import shutil
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmllm.cli import main
from mmllm.video.frame_files import frame_files
from mmllm.video.opening import (
    FrameFolder,
    FramesMissing,
    LimitExceeded,
    NoFrames,
    VideoDecodeError,
    VideoLimits,
    open_video,
)
from mmllm.video.still_images import broken_images

CASES = Path(__file__).resolve().parents[1] / "data" / "cases"


def write_frames(folder: Path, names: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", (16, 8), (number, 0, 0)).save(folder / name)
    return folder


def reds(folder: Path, fps: float = 5) -> tuple[list[int], list[float]]:
    """The red of each frame, which is its place among the written ones, and the times."""
    with open_video(FrameFolder(path=folder, fps=fps)) as video:
        clip = video.frames_by_index(range(len(video)))
        return clip.frames[:, 0, 0, 0].tolist(), clip.times_s.round(6).tolist()


@pytest.mark.parametrize("name", ["frames_applefiles", "frames_webp"])
def test_the_shared_cases(name):
    with open_video(CASES / name, fps=5) as video:
        assert (len(video), video.info.duration_s) == (5, 1.0)
        assert len(video.sample_uniform(5)) == 5
    assert len(frame_files(CASES / name).files) == 5


def test_what_is_no_frame_is_left_out(tmp_path):
    write_frames(tmp_path, ["1.png", "2.PNG", "3.webp", "4.jpeg", "5.bmp"])
    for name in ("._1.png", ".DS_Store", "Thumbs.db", "desktop.ini", "notes.txt"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    (tmp_path / "6.png").mkdir()
    frames = frame_files(tmp_path)
    assert [path.name for path in frames.files] == ["1.png", "2.PNG", "3.webp", "4.jpeg", "5.bmp"]
    assert (frames.slots, frames.gaps, frames.problem) == ((0, 1, 2, 3, 4), "", "")


@pytest.mark.parametrize(
    ("names", "times_s"),
    [
        (["000001.png", "000003.png"], [0, 0.4]),
        (["000001.png", "000002.png", "000005.png", "000006.png"], [0, 0.2, 0.8, 1.0]),
        (["frame_7.png", "frame_9.png", "frame_10.png"], [0, 0.4, 0.6]),
        (["v2_f099.png", "v2_f101.png"], [0, 0.4]),
        (["0.png", "0030.png"], [0, 6.0]),
    ],
)
def test_times_follow_the_numbers(names, times_s, tmp_path):
    write_frames(tmp_path, names)
    with pytest.warns(FramesMissing, match=r"numbers from \d+ to \d+; \d+ are missing, the first between"):
        assert reds(tmp_path) == (list(range(len(names))), times_s)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with open_video(FrameFolder(path=tmp_path, fps=5)) as video:
            assert video.info.duration_s == pytest.approx(times_s[-1] + 0.2)


@pytest.mark.parametrize(
    "names",
    [
        ["000041.png", "000042.png", "000043.png"],
        ["9.png", "10.png", "11.png"],
        ["a.png", "b.png", "d.png"],
        ["1_of_3.png", "2_of_3.png", "3_of_3.png"],
        ["frame_1.50.png", "frame_2.00.png", "frame_7.50.png"],
        ["1.bmp", "1.png", "5.png"],
        ["a1.png", "a5.png", "b2.png"],
    ],
)
@pytest.mark.filterwarnings("error::mmllm.video.errors.FramesMissing")
def test_without_gaps_or_clear_numbers_frames_are_counted(names, tmp_path):
    write_frames(tmp_path, names)
    assert reds(tmp_path) == (list(range(len(names))), [0, 0.2, 0.4])


@pytest.mark.parametrize("name", ["²1.png", "①.png", "٣.png", "1²3.png", "½.png"])
def test_digits_that_are_no_numbers(name, tmp_path):
    write_frames(tmp_path, [name])
    assert reds(tmp_path) == ([0], [0])
    with pytest.raises(SystemExit) as exit_:
        main(["info", str(tmp_path), "--fps", "5"])
    assert exit_.value.code == 0


def test_the_shared_case_of_a_superscript(tmp_path):
    shutil.copy(CASES / "fault_superscript_²1.png", tmp_path / "²1.png")
    with open_video(tmp_path, fps=5) as video:
        assert len(video) == 1


def test_numbers_beyond_all_times_are_refused(tmp_path):
    write_frames(tmp_path, ["1.png", "9" * 200 + ".png"])
    with pytest.warns(FramesMissing), pytest.raises(LimitExceeded, match="s long"):
        open_video(tmp_path, fps=5)


def test_folders_without_frames_are_told_apart(tmp_path):
    (tmp_path / "clip.mp4").touch()
    with pytest.raises(NoFrames, match=r"holds no images .*; it holds clip\.mp4"):
        open_video(tmp_path, fps=5)
    write_frames(tmp_path, ["1.png", "2.png"])
    (tmp_path / "3.png").touch()
    with pytest.raises(NoFrames, match=r"1 of 3 images are empty files: 3\.png"):
        open_video(tmp_path, fps=5)


def test_broken_images_are_named(tmp_path):
    names = ["0.png", "1.jpg", "2.webp", "3.bmp", "4.png"]
    write_frames(tmp_path, names)
    files = [tmp_path / name for name in names]
    assert broken_images(files, VideoLimits()) == []
    for file in files[:4]:
        file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])
    files[4].write_bytes(b"not an image")
    problems = broken_images(files, VideoLimits())
    assert [problem.split(":")[0] for problem in problems] == list(map(str, files))
    assert "a text that begins with" in problems[4]


def test_info_names_broken_images(tmp_path, capsys):
    write_frames(tmp_path, ["1.png", "2.png"])
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:50])
    with pytest.raises(SystemExit) as exit_:
        main(["info", str(tmp_path)])
    assert exit_.value.code == 2
    assert "1 images cannot be read" in capsys.readouterr().out


def test_gaps_are_told_by_info(tmp_path, capsys):
    write_frames(tmp_path, ["1.png", "4.png"])
    with pytest.raises(SystemExit) as exit_:
        main(["info", str(tmp_path), "--fps", "2"])
    output = capsys.readouterr().out
    assert exit_.value.code == 0
    assert "2.000 s, 2 frames" in output
    assert "2 are missing, the first between 1.png and 4.png" in output


def test_postscript_starts_no_program(tmp_path, monkeypatch):
    def no_program(*arguments, **_):
        raise AssertionError(f"a program was started: {arguments}")

    monkeypatch.setattr(subprocess, "Popen", no_program)
    monkeypatch.setattr(subprocess, "check_call", no_program)
    monkeypatch.setattr(shutil, "which", no_program)
    shutil.copy(CASES / "fault_postscript_named.png", tmp_path / "1.png")
    with pytest.raises(VideoDecodeError, match="a PostScript file"):
        open_video(tmp_path, fps=5)


def test_slots_of_arrays_are_counted():
    with open_video([np.full((4, 4, 3), shade, np.uint8) for shade in range(3)], fps=2) as video:
        assert video.times_s.tolist() == [0, 0.5, 1.0]
        assert not video.info.variable_rate
