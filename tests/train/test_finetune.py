"""Fine-tuning on own clips: it learns them, goes on after any kill, and refuses what has changed or cannot be used."""

import json
import os
import random
import shutil
import signal
import time

import numpy as np
import pytest
import torch

from mmllm.datasets.formats import read_questions
from mmllm.errors import CheckpointError, ConfigError, InputError
from mmllm.inference.answering import VideoQA
from mmllm.train.finetune import FinetuneConfig, FinetuneTraining, finetune
from mmllm.train.metrics import read_metrics


def config(base, *, seed=0, adapter_only=False, **training):
    short = {"max_steps": 6, "batch_size": 3, "save_steps": 2, "logging_steps": 1, "lora_rank": 4}
    settings = FinetuneTraining(**{**short, **training})
    return FinetuneConfig(model=str(base), seed=seed, adapter_only=adapter_only, training=settings)


def losses(run):
    return [(line["step"], line["loss"]) for line in read_metrics(run / "language" / "metrics.jsonl") if "loss" in line]


def span_iou(a, b):
    intersection = max(0.0, min(a.end_s, b.end_s) - max(a.start_s, b.start_s))
    return intersection / (a.length_s + b.length_s - intersection)


@pytest.mark.slow
def test_own_clips_are_learned(own_clips, tiny_base, tmp_path):
    learning = config(tiny_base, max_steps=100, batch_size=6, save_steps=1000, learning_rate=1e-2, lora_rank=16)
    model = finetune(learning, own_clips / "clips.jsonl", tmp_path / "run", workers=0)
    qa = VideoQA.from_pretrained(model)
    questions = read_questions(own_clips / "clips.jsonl").items
    ious = [span_iou(qa.ask(item.video, item.question).spans[0], item.spans[0]) for item in questions]
    assert len(ious) == 6
    assert np.mean(ious) > 0.9


def killed(fork, settings, file, output, moments):
    """Runs a fine-tuning that is killed again and again, then to its end.

    Args:
        fork: starts a process.
        settings, file, output: of the fine-tuning.
        moments: for each kill the steps that are waited for, and the seconds after that.

    Returns:
        Whether a kill came after a checkpoint and before the model was saved.
    """
    midway = False
    for steps, seconds in moments:
        process = fork(finetune, settings, file, output)
        while steps and process.is_alive() and not (losses(output) and losses(output)[-1][0] >= steps):
            time.sleep(0.01)
        time.sleep(seconds)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        midway |= any(output.glob("language/checkpoints/*/trainer_state.json")) and not (output / "model").exists()
    finetune(settings, file, output, workers=0)
    return midway


def same_run(ours, theirs):
    from safetensors.torch import load_file

    weights = [load_file(run / "model" / "model.safetensors") for run in (ours, theirs)]
    return losses(ours) == losses(theirs) and all(weights[0][name].equal(weights[1][name]) for name in weights[1])


@pytest.mark.slow
def test_a_fine_tuning_killed_at_random_moments_ends_the_same(fork, own_clips, tiny_base, tmp_path):
    settings, file, draw = config(tiny_base, max_steps=8), own_clips / "clips.jsonl", random.Random(0)
    begun = time.monotonic()
    finetune(settings, file, tmp_path / "whole", workers=0)
    whole_s = time.monotonic() - begun
    moments = [(0, draw.uniform(0.2, 1.0) * whole_s), (1, draw.uniform(0, 0.5)), (4, draw.uniform(0, 0.5))]
    killed(fork, settings, file, tmp_path / "killed", moments)
    assert [step for step, _ in losses(tmp_path / "killed")] == list(range(1, 9))
    assert same_run(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.long  # minutes of kills
@pytest.mark.timeout(7200)
def test_fifty_of_fifty_killed_fine_tunings_end_the_same(fork, own_clips, tiny_base, tmp_path):
    settings, file, draw = config(tiny_base, max_steps=8, save_steps=1), own_clips / "clips.jsonl", random.Random(1)
    whole, same, midway = tmp_path / "whole", [], 0
    begun = time.monotonic()
    finetune(settings, file, whole, workers=0)
    whole_s = time.monotonic() - begun
    for number in range(50):
        run, moment = tmp_path / str(number), (0, draw.uniform(0, whole_s))
        if number % 5:  # most of a run's time is start and encoding: these are killed in training, or just after
            shutil.copytree(whole / "features", run / "features")
            moment = (draw.randrange(9), draw.uniform(0, 0.2))
        midway += killed(fork, settings, file, run, [moment])
        same.append(same_run(run, whole))
        print(f"{sum(same)} of {len(same)} the same, {midway} of them killed between a checkpoint and the end")
    assert same == [True] * 50
    assert midway >= 20


@pytest.mark.slow
def test_changed_data_or_settings_are_refused_with_the_difference(copied_clips, tiny_base, tmp_path):
    file = copied_clips / "clips.jsonl"
    settings = config(tiny_base, max_steps=2)
    finetune(settings, file, tmp_path / "run", workers=0)
    with pytest.raises(ConfigError, match=r"training\.learning_rate: 0\.001 -> 0\.5"):
        finetune(config(tiny_base, max_steps=2, learning_rate=0.5), file, tmp_path / "run", workers=0)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[0]["spans"][0][1] += 0.5
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    with pytest.raises(ConfigError, match=rf"rows\.{rows[0]['id']}: .+; rows\.{rows[-1]['id']}: '\w+' -> \(nothing\)"):
        finetune(settings, file, tmp_path / "run", workers=0)
    finetune(settings, file, tmp_path / "run", workers=0, force=True)


@pytest.mark.slow
def test_adapters_alone_answer_as_the_merged_model_would(own_clips, tiny_base, tmp_path):
    file = own_clips / "clips.jsonl"
    whole = finetune(config(tiny_base, learning_rate=1e-2), file, tmp_path / "a", workers=0)
    adapter = finetune(config(tiny_base, learning_rate=1e-2, adapter_only=True), file, tmp_path / "b", workers=0)
    assert adapter.name == "adapter"
    assert not (adapter / "config.json").exists()
    merged, loaded = (VideoQA.from_pretrained(folder).model.state_dict() for folder in (whole, adapter))
    assert set(merged) == set(loaded)
    for name, weight in merged.items():
        torch.testing.assert_close(loaded[name], weight, rtol=1e-5, atol=1e-6)
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="which model these adapters belong to"):
        VideoQA.from_pretrained(adapter)


def test_everything_that_is_wrong_is_told_before_training(copied_clips, tiny_base, tmp_path):
    good = (copied_clips / "clips.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in good[:4]]
    rows[0]["spans"] = [[5, 2]]
    rows[1]["video"] = "videos/gone.mp4"
    (copied_clips / "broken.mp4").write_text("no video")
    rows[2]["video"] = "broken.mp4"
    rows[3]["spans"] = [[1, 2, 3]]
    file = copied_clips / "bad.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError) as refused:
        finetune(config(tiny_base), file, tmp_path / "run", workers=0)
    for part in (
        "line 1: the interval [5, 2] ends before it starts",
        "line 2: videos/gone.mp4",
        "broken.mp4",
        "--skip-bad",
    ):
        assert part in str(refused.value)
    assert not (tmp_path / "run" / "run.json").exists()
    file.write_text("\n".join([*file.read_text().splitlines(), *good[4:]]))
    finetune(config(tiny_base, max_steps=1), file, tmp_path / "run", workers=0, skip_bad=True)
    assert len(json.loads((tmp_path / "run" / "run.json").read_text())["rows"]) == 2


def test_staying_near_the_llm_needs_text_alone(own_clips, tiny_base, tmp_path):
    near = config(tiny_base, max_steps=1, lora_rank=2, base_kl_weight=1.0)
    with pytest.raises(ConfigError, match="needs dialogues without a video"):
        finetune(near, own_clips / "clips.jsonl", tmp_path, workers=0)


def test_settings_that_cannot_be_are_refused(tiny_base):
    with pytest.raises(ConfigError, match="adapter_only"):
        config(tiny_base, adapter_only=True, lora_rank=0)
