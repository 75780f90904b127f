"""The model that comes with the package: small, complete, and better than a guess."""

import pytest
from safetensors import safe_open

from mmllm.hub.sources import DEFAULT_SMALL, small_model
from mmllm.inference.answering import VideoQA


def test_it_is_small_and_has_a_card():
    files = {path.name: path.stat().st_size for path in small_model().iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= set(files)
    assert sum(files.values()) <= 10_000_000


def test_its_weights_are_finite():
    with safe_open(small_model() / "model.safetensors", "pt") as file:
        assert all(file.get_tensor(name).isfinite().all() for name in file.keys())  # noqa: SIM118


@pytest.mark.slow
def test_it_finds_things_that_come_and_go_better_than_a_guess(tmp_path, monkeypatch):
    from mmllm.evaluation.fresh import fresh_benchmark
    from mmllm.evaluation.run import answer_all, scores_of

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    benchmark = fresh_benchmark(11, videos=6, workers=1)
    asked = [question for question in benchmark.questions if question.family == "visible"]
    samples, shuffled = answer_all(VideoQA.from_pretrained(DEFAULT_SMALL), asked, tmp_path / "eval", progress=False)
    scores = scores_of(samples, shuffled, benchmark.fit)
    assert scores["miou"] > scores["best_constant_miou"] + 0.1
    assert scores["miou"] > scores["shuffled_miou"] + 0.1
