"""Needle Threading as texts, and streams, with models that transformers runs."""

import json

import numpy as np
import pytest
from tiny_models import CASES
from tiny_processors import processor

from mmllm.errors import ConfigError, InputError
from mmllm.evaluation.threads.suites import suite_of
from mmllm.evaluation.threads.text_run import run_text
from mmllm.hosting.model import HostedModel
from mmllm.hub.sources import DEFAULT
from mmllm.inference.answering import VideoQA
from mmllm.inference.hosted import HostedVideoQA
from mmllm.inference.hosted_prompts import HostedPrompts
from mmllm.inference.prompts import PromptTooLong
from mmllm.tokens import VideoClip
from mmllm.watch.config import WatchConfig
from mmllm.watch.memory import SlidingWindow

SMALL = "threads-text:pairs=8,depths=0+100,repeats=1,needles=2,threads=2,steps=2"


@pytest.fixture
def qa():
    hosted = HostedModel(CASES["qwen3_vl"].model, processor("qwen3_vl"))
    return HostedVideoQA(hosted, max_new_tokens=4)


def answering(monkeypatch, reply):
    """Lets the model say what `reply` makes of the question's task."""
    asked = []

    def prompt(self, turns, times_of=-1):
        asked.append(turns[0].content[0])
        return asked[-1]

    monkeypatch.setattr(HostedPrompts, "prompt", prompt)
    monkeypatch.setattr(HostedPrompts, "generate", lambda self, prompts, **_: np.zeros((1, 1), dtype=int))
    monkeypatch.setattr(HostedPrompts, "plain", lambda self, ids: reply(asked[-1]))
    return asked


def test_a_model_answers_the_tasks_and_random_weights_score_nothing(qa, tmp_path):
    scores = run_text(qa, suite_of(f"{SMALL},tasks=single"), tmp_path)
    assert (scores["tasks"], scores["score"], scores["chance"], scores["too_long"]) == (2, 0.0, 1 / 8, 0)
    assert {cell["depth_percent"] for cell in scores["cells"]} == {0, 100}


def test_right_values_score_and_answers_are_kept(qa, tmp_path, monkeypatch):
    config = suite_of(SMALL)
    values = {task.prompt: ", ".join(task.values) for task in config.all_tasks}
    asked = answering(monkeypatch, values.__getitem__)
    scores = run_text(qa, config, tmp_path)
    assert scores["score"] == 1.0
    assert set(scores["kinds"]) == {
        "single", "several", "conditional", "thread of 2, forward", "thread of 2, backward",
        "threads of 2, forward", "threads of 2, backward",
    }  # fmt: skip
    assert asked == list(values)
    assert run_text(qa, config, tmp_path) == scores == json.loads((tmp_path / "metrics.json").read_text())
    assert len(asked) == len(values)  # nothing was asked again


def test_a_haystack_that_is_too_long_scores_nothing_and_is_counted(qa, tmp_path, monkeypatch):
    def refuse(self, turns, times_of=-1):
        raise PromptTooLong("the LLM reads 64 positions")

    monkeypatch.setattr(HostedPrompts, "prompt", refuse)
    scores = run_text(qa, suite_of(f"{SMALL},tasks=single"), tmp_path)
    assert (scores["score"], scores["too_long"]) == (0.0, 2)


def test_a_closed_vocabulary_cannot_spell_the_keys(tmp_path):
    with pytest.raises(InputError, match="closed vocabulary"):
        run_text(VideoQA.from_pretrained(DEFAULT), suite_of(SMALL), tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("threats", "did you mean 'threads'"),
        ("threads:clip=3", "no field 'clip'"),
        ("threads:pairs=9", "from 2 to 6"),
        ("threads:lengths=5", "lengths"),
        ("threads:lengths=4000", "to an hour"),
        ("threads:steps=1", "from 2 to 6"),
        ("threads:world=moon", "one of basic"),
        ("threads:seed=-1", "seed"),
        ("threads-text:tasks=knots", "must be one of"),
        ("threads-text:pairs=0", "at least 1"),
        ("threads-text:depths=200", "from 0 to 100"),
        ("threads-text:needles=30", "at most the number of pairs"),
        ("threads-text:steps=0", "at least 1"),
        ("threads-text:threads=9", "few enough"),
        ("threads-text:repeats=0", "repeats"),
    ],
)
def test_suites_that_cannot_be_made_are_refused(text, said):
    with pytest.raises(ConfigError, match=said):
        suite_of(text)


def test_a_sliding_window_of_a_hosted_model_is_the_clip(qa):
    pictures = np.random.default_rng(0).integers(0, 255, (8, 32, 48, 3), dtype=np.uint8)
    window = SlidingWindow(qa, WatchConfig(window_s=2.0))
    for number, picture in enumerate(pictures):
        window.add(picture, 10 + number / 2)
    clip = VideoClip(frames=pictures[4:], times_s=np.arange(4) / 2, duration_s=2.0)
    (answer,) = window.ask(["When?"])
    assert answer.raw == qa.ask(clip, "When?").raw
    assert (window.seen.start_s, window.seen.end_s) == (12.0, 13.5)
    assert not window.recent.keeps_features
