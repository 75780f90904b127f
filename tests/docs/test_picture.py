"""The README's first picture shows an answer that is right."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "images" / "answer.py"


@pytest.mark.slow
def test_the_first_picture_shows_a_right_answer(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    spec = importlib.util.spec_from_file_location("answer", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    start_s, end_s, true_start_s, true_end_s = script.draw(tmp_path / "answer.png")
    both = min(end_s, true_end_s) - max(start_s, true_start_s)
    assert both / (max(end_s, true_end_s) - min(start_s, true_start_s)) > 0.7
    assert (tmp_path / "answer.png").stat().st_size > 50_000
