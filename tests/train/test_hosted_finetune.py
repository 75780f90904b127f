"""Fine-tuning a hosted model: plain PEFT and transformers load what it saves, a stopped run goes on bit for bit."""

import os
import signal
import time

import pytest
import torch
from hosted_folder import hosted
from safetensors.torch import load_file

from mmllm.errors import ConfigError, InputError
from mmllm.inference.answering import VideoQA
from mmllm.train.finetune import FinetuneConfig, FinetuneTraining, finetune
from mmllm.train.metrics import read_metrics

__all__ = ["hosted"]


def config(base, *, adapter_only=True, reducers=(), **training):
    short = {
        "max_steps": 4,
        "batch_size": 2,
        "save_steps": 2,
        "logging_steps": 1,
        "lora_rank": 4,
        "learning_rate": 1e-2,
    }
    settings = FinetuneTraining(**{**short, **training})
    return FinetuneConfig(model=str(base), adapter_only=adapter_only, reducers=reducers, training=settings)


def losses(run):
    return [(line["step"], line["loss"]) for line in read_metrics(run / "language" / "metrics.jsonl") if "loss" in line]


@pytest.mark.slow
def test_adapters_are_learned_and_loaded_by_peft_alone(own_clips, hosted, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    chosen = config(hosted, max_steps=12, reducers=("evs:rate=0.5",))
    adapter = finetune(chosen, own_clips / "clips.jsonl", tmp_path / "run", workers=0)
    values = [loss for _, loss in losses(tmp_path / "run")]
    assert sum(values[-3:]) < 0.9 * sum(values[:3])
    assert not (adapter / "config.json").exists()
    base = AutoModelForImageTextToText.from_pretrained(hosted, dtype=torch.float32).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    before = base(ids).logits
    plain = PeftModel.from_pretrained(base, adapter).eval()
    after = plain(ids).logits
    assert not torch.allclose(before, after, atol=1e-2)
    clip = next((own_clips / "videos").glob("*.mp4"))
    qa = VideoQA.from_pretrained(adapter)
    torch.testing.assert_close(qa.model.model(ids).logits, after, rtol=1e-4, atol=1e-4)
    assert qa.ask(clip, "When is it there?", max_new_tokens=4).raw is not None


@pytest.mark.slow
def test_a_stopped_run_ends_the_same(fork, own_clips, hosted, tmp_path):
    settings, file = config(hosted, adapter_only=False, max_steps=5), own_clips / "clips.jsonl"
    finetune(settings, file, tmp_path / "whole", workers=0)
    process = fork(finetune, settings, file, tmp_path / "killed")
    while process.is_alive() and not (losses(tmp_path / "killed") and losses(tmp_path / "killed")[-1][0] >= 3):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (tmp_path / "killed" / "model").exists()
    finetune(settings, file, tmp_path / "killed", workers=0)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    weights = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("killed", "whole")]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[1])
    base = load_file(hosted / "model.safetensors")
    changed = {name for name in base if not base[name].equal(weights[1][name])}
    assert changed
    assert all("language_model" in name for name in changed)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"packed_attention": True}, "packed_attention"),
        ({"chunks": 2}, "chunks above 1"),
        ({"grounding": False}, "grounding = False: a hosted model has no grounding loss"),
        ({"base_kl_weight": 1.0}, "base_kl_weight above 0"),
        ({"ring": 2}, "ring above 1"),
        ({"frozen": ("encoder", "path")}, r"must be \['encoder'\]"),
        ({"reducers": ("fastervlm:keep=4",)}, "fastervlm"),
    ],
)
def test_what_a_hosted_model_cannot_do_is_refused(own_clips, hosted, tmp_path, fields, message):
    with pytest.raises(ConfigError, match=message):
        finetune(config(hosted, **fields), own_clips / "clips.jsonl", tmp_path / "run", workers=0)


def test_rows_about_something_else_than_one_video_are_refused(copied_clips, hosted, tmp_path):
    from PIL import Image

    Image.new("RGB", (24, 24), "red").save(copied_clips / "red.png")
    file = copied_clips / "image.jsonl"
    file.write_text('{"id": "still", "image": "red.png", "question": "What is it?", "answer": "Red."}\n')
    with pytest.raises(InputError, match="still: only dialogues about one video"):
        finetune(config(hosted), file, tmp_path / "run", workers=0)


def test_our_models_take_no_reducers_and_one_question_a_row(own_clips, tiny_base, tmp_path):
    with pytest.raises(ConfigError, match="reducers"):
        finetune(config(tiny_base, reducers=("evs:rate=0.5",)), own_clips / "clips.jsonl", tmp_path / "a", workers=0)
    with pytest.raises(ConfigError, match="questions_per_video"):
        finetune(config(tiny_base, questions_per_video=2), own_clips / "clips.jsonl", tmp_path / "b", workers=0)
