"""Paths as people write them."""

from __future__ import annotations

import shutil
import unicodedata

import pytest

from mmllm.cli import main
from mmllm.errors import InputError
from mmllm.video.names import existing, is_address, nearest
from mmllm.video.opening import VideoOpenError, open_video

NAME = "Café Ångström.mp4"
FORMS = ("NFC", "NFD")


@pytest.mark.parametrize("stored", FORMS)
@pytest.mark.parametrize("asked", FORMS)
def test_both_unicode_forms_are_found(stored, asked, tmp_path, b_frames):
    folder = tmp_path / unicodedata.normalize(stored, "Vidéos")
    folder.mkdir()
    shutil.copy(b_frames, folder / unicodedata.normalize(stored, NAME))
    path = tmp_path / unicodedata.normalize(asked, "Vidéos") / unicodedata.normalize(asked, NAME)
    with open_video(path) as video:
        assert len(video) == 120
    mixed = tmp_path / unicodedata.normalize(asked, "Vidéos") / unicodedata.normalize(stored, NAME)
    found = existing(mixed)
    assert found is not None
    assert found.samefile(folder / unicodedata.normalize(stored, NAME))
    assert existing(tmp_path / "Vidéo") is None


def test_folders_of_frames_are_found_too(tmp_path):
    from PIL import Image

    folder = tmp_path / unicodedata.normalize("NFD", "Übung")
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "1.png")
    with open_video(tmp_path / unicodedata.normalize("NFC", "Übung"), fps=5) as video:
        assert len(video) == 1


@pytest.mark.parametrize(
    ("asked", "stored"),
    [
        ("Cook.MP4", "cook.mp4"),
        ("cook.mov", "cook.mp4"),
        ("cook", "cook.mp4"),
        ("cok.mp4", "cook.mp4"),
        ("my%20clip.mp4", "my clip.mp4"),
        ("my clip.mp4", "my_clip.mp4"),
        ("clip.mp4 ", "clip.mp4"),
        ("'clip.mp4'", "clip.mp4"),
        ("clips\\cook.mp4", "clips/cook.mp4"),
        ("clips\\Cook.mp4", "clips/cook.mp4"),
        ("Clips/cook.mp4", "clips"),
    ],
)
def test_the_nearest_name_is_shown(asked, stored, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / stored
    if stored == "clips":
        path.mkdir()
    else:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    for name in (asked, f"{tmp_path}/{asked}"):
        with pytest.raises(VideoOpenError, match=rf"No such file or directory.*did you mean .*{stored}\?"):
            open_video(name)


def test_nothing_near_is_not_shown(tmp_path):
    (tmp_path / "holiday.mp4").touch()
    assert nearest(tmp_path / "cook.mp4") == ""
    assert nearest(tmp_path / "gone" / "far" / "cook.mp4") == f"; there is no folder {tmp_path / 'gone'}"


def test_a_closed_folder_shows_no_names(tmp_path):
    (tmp_path / "secret.mp4").touch()
    with pytest.raises(VideoOpenError) as failure:
        open_video(tmp_path / "Secret.mp4", inside=tmp_path)
    assert "did you mean" not in str(failure.value)


@pytest.mark.parametrize("address", ["https://example.org/a//b%20c.mp4?x=1", "ftp://example.org/a.mp4", "s3://b/c.mp4"])
def test_addresses_are_printed_as_written(address, capsys):
    assert is_address(address)
    with pytest.raises(VideoOpenError) as failure:
        open_video(address)
    assert str(failure.value).startswith(f"{address}: an address, not a file; download it first")
    with pytest.raises(SystemExit) as exit_:
        main(["info", address])
    assert exit_.value.code == 2
    output = capsys.readouterr().out
    assert address in output
    assert "allow_url" not in output


def test_what_python_can_do_is_a_note(tmp_path):
    with pytest.raises(InputError) as failure:
        open_video("https://example.org/clip.mp4")
    assert any("allow_url=True" in note for note in failure.value.__notes__)
    with pytest.raises(VideoOpenError, match=r"give their rate \(fps\)") as failure:
        open_video(tmp_path)
    assert any("fps=5" in note for note in failure.value.__notes__)
