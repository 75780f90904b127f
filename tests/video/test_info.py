"""`mmllm info`: one entry a file, exit code 2 if any failed, never a traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mmllm.commands.info import info
from mmllm.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


def test_json_has_one_object_a_line(b_frames, tmp_path, capsys):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    assert info((b_frames, bad, tmp_path / "gone.mp4"), json=True) == 2
    good, *failed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (good["path"], good["ok"], good["num_frames"], good["codec"]) == (str(b_frames), True, 120, "h264")
    assert good["duration_s"] == pytest.approx(4.0)
    assert [row["ok"] for row in failed] == [False, False]
    assert [row["error"]["type"] for row in failed] == ["VideoOpenError"] * 2
    assert info((b_frames,), json=True) == 0


def test_text_for_people(b_frames, tmp_path, capsys):
    assert info((b_frames,)) == 0
    output = capsys.readouterr().out
    assert "120 frames, 30.000 a second (steady)" in output
    assert "128 x 64, h264 in mov" in output
    assert info((tmp_path / "gone.mp4",)) == 2
    assert "No such file" in capsys.readouterr().out


def test_tracks_of_sound_are_listed(heard_clip, b_frames, capsys):
    assert info((heard_clip, b_frames)) == 0
    output = capsys.readouterr().out
    assert output.count("sound: ") == 1
    assert "sound: 1 aac 16000 Hz mono (default)" in output
    assert info((heard_clip,), json=True) == 0
    assert json.loads(capsys.readouterr().out)["audio"] == ["1 aac 16000 Hz mono (default)"]


def test_folders_have_five_images_a_second_unless_told(tmp_path, capsys, picture):
    from PIL import Image

    for number in range(3):
        Image.fromarray(picture(number, 64, 128)).save(tmp_path / f"{number}.png")
    assert info((tmp_path,), json=True) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["num_frames"], row["duration_s"]) == (3, 0.6)
    assert "--fps" in row["warnings"][0]
    assert info((tmp_path,), json=True, fps=1.5) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["num_frames"], row["duration_s"], row["warnings"]) == (3, 2.0, [])


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused(tmp_path, fps):
    with pytest.raises(InputError, match="--fps"):
        info((tmp_path,), fps=fps)


def test_a_rate_without_a_folder_is_refused(b_frames):
    with pytest.raises(InputError, match="--fps is the rate of folders"):
        info((b_frames,), fps=5.0)


def test_cut_files_are_told(make_clip, tmp_path, capsys):
    path = tmp_path / "cut.mkv"
    path.write_bytes(make_clip("long.mkv", frames=100, options={"g": "25"}).read_bytes()[:-3000])
    assert info((path,), json=True) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["truncated"]
    assert "declared bytes" in row["warnings"][0]


def test_nothing_named():
    with pytest.raises(InputError, match="name at least one video"):
        info(())


def test_the_command_line_ends_with_code_2_and_no_traceback(tmp_path):
    process = subprocess.run(
        [sys.executable, "-m", "mmllm", "info", str(tmp_path / "gone.mp4")],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert process.returncode == 2
    assert "VideoOpenError" in process.stdout
    assert "Traceback" not in process.stdout + process.stderr
