"""The model that comes with the package: small, complete, and better than a guess."""

import pytest
from packaged import assert_better_than_a_guess, assert_finite

from mmllm.hub.sources import DEFAULT_SMALL, small_model
from mmllm.inference.answering import VideoQA


def test_it_is_small_and_has_a_card():
    files = {path.name: path.stat().st_size for path in small_model().iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= set(files)
    assert sum(files.values()) <= 10_000_000


def test_its_weights_are_finite():
    assert_finite(small_model() / "model.safetensors")


@pytest.mark.slow
def test_it_finds_things_that_come_and_go_better_than_a_guess(tmp_path, monkeypatch):
    from mmllm.evaluation.fresh import fresh_benchmark

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    benchmark = fresh_benchmark(11, videos=6, workers=1)
    assert_better_than_a_guess(VideoQA.from_pretrained(DEFAULT_SMALL), benchmark, tmp_path / "eval")
