"""The README's first picture shows an answer that is right; the picture of things, rendered frames."""

import importlib.util
from pathlib import Path

import pytest
from own_pictures import write_pictures
from PIL import Image

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"


def loaded(name):
    """A script of that folder, as a module."""
    spec = importlib.util.spec_from_file_location(name, IMAGES / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.mark.slow
def test_the_first_picture_shows_a_right_answer(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    script = loaded("answer")
    start_s, end_s, true_start_s, true_end_s = script.draw(tmp_path / "answer.png")
    both = min(end_s, true_end_s) - max(start_s, true_start_s)
    assert both / (max(end_s, true_end_s) - min(start_s, true_start_s)) > 0.7
    assert (tmp_path / "answer.png").stat().st_size > 50_000


def test_the_picture_of_things_shows_rows_of_frames(tmp_path):
    script = loaded("things")
    made = script.picture(str(write_pictures(tmp_path / "pictures")), None)
    assert made.size == (script.COLUMNS * script.SIDE, script.ROWS * script.SIDE)
    assert made.size == Image.open(IMAGES / "things.png").size
