"""Whole runs: every stage of the smoke recipe, and a run that is killed and goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from mmllm.errors import ConfigError, MmllmError
from mmllm.inference.answering import VideoQA
from mmllm.train.fitting import latest_checkpoint
from mmllm.train.metrics import read_metrics
from mmllm.train.recipes import RECIPES, recipe
from mmllm.train.record import claim
from mmllm.train.run import record_of, train

TINY = {
    "data": {"synthetic": {"train_videos": 6, "val_videos": 2, "min_duration_s": 8, "max_duration_s": 12}},
    "frame_encoder": {"max_steps": 4, "batch_size": 8, "save_steps": 2, "logging_steps": 1, "workers": 0},
    "model": {"num_frames": 8, "path": "slowfast:image_frames=8"},
    "language": {"max_steps": 12, "batch_size": 2, "save_steps": 3, "logging_steps": 1},
}


def command(output, config, *more):
    return [sys.executable, "-m", "mmllm", "train", "smoke", "--output", str(output), "--config", str(config), *more]


@pytest.fixture(scope="module")
def tiny_config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, tiny_config):
    output = tmp_path_factory.mktemp("runs") / "whole"
    subprocess.run(command(output, tiny_config), check=True, capture_output=True, env=_one_thread())
    return output


def _one_thread():
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def losses(run):
    return [(line["step"], line["loss"]) for line in read_metrics(run / "language" / "metrics.jsonl") if "loss" in line]


@pytest.mark.slow
def test_a_run_leaves_a_model_its_losses_and_their_picture(whole_run):
    assert [step for step, _ in losses(whole_run)] == list(range(1, 13))
    assert (whole_run / "model" / "model.safetensors").exists()
    assert (whole_run / "loss.png").stat().st_size > 5000
    assert json.loads((whole_run / "recipe.json").read_text())["language"]["max_steps"] == 12


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_with_the_same_losses_and_weights(whole_run, tiny_config, tmp_path):
    from safetensors.torch import load_file

    output = tmp_path / "killed"
    for wait_for in (
        "encoder/checkpoints/checkpoint-2",
        "language/checkpoints/checkpoint-3",
        "language/checkpoints/checkpoint-9",
    ):
        process = subprocess.Popen(
            command(output, tiny_config), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=_one_thread()
        )
        while process.poll() is None and not (output / wait_for).exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command(output, tiny_config), check=True, capture_output=True, env=_one_thread())
    assert losses(output) == losses(whole_run)
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (output, whole_run))
    assert all(ours[name].equal(theirs[name]) for name in theirs)


@pytest.mark.slow
def test_evaluating_goes_on_and_scores_the_same_again(whole_run, tmp_path):
    def evaluate(output, *more):
        return subprocess.run(
            [sys.executable, "-m", "mmllm", "eval", whole_run / "model", whole_run / "data", "--output", output, *more],
            check=True, capture_output=True, text=True,
        )  # fmt: skip

    evaluate(tmp_path / "whole")
    whole = json.loads((tmp_path / "whole" / "metrics.json").read_text())
    keys = ("miou", "p_at_0.5", "best_constant_miou", "whole_video_miou", "shuffled_miou", "fallback_rate", "coverage")
    assert all(0 <= whole[key] <= 1 for key in keys)
    evaluate(tmp_path / "parts", "--limit", "1")
    cut = tmp_path / "parts" / "samples.jsonl"
    cut.write_text(cut.read_text()[:-20])  # as if killed while writing
    evaluate(tmp_path / "parts")
    again = json.loads((tmp_path / "parts" / "metrics.json").read_text())
    assert {**again, "seconds": 0} == {**whole, "seconds": 0}
    done = subprocess.run(
        [sys.executable, "-m", "mmllm", "score", tmp_path / "whole" / "samples.jsonl", "--json"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["miou"] == whole["miou"]


@pytest.mark.slow
def test_asking_a_trained_model(whole_run, tmp_path):
    video = next((whole_run / "data" / "videos").glob("*.mp4"))
    ask = [sys.executable, "-m", "mmllm", "ask", video, "When is the red circle visible?"]
    model = ["--model", whole_run / "model"]
    done = subprocess.run([*ask, *model, "--json"], check=True, capture_output=True, text=True)
    answer = json.loads(done.stdout)
    assert 0 <= answer["spans"][0][0] <= answer["spans"][0][1] <= answer["duration_s"]
    assert "synthetic" in answer["note"]
    picture = tmp_path / "answer.png"
    done = subprocess.run(
        [*ask, *model, "--plot", picture, "--reducer", "fastervlm:keep=4"], check=True, capture_output=True, text=True
    )
    assert picture.stat().st_size > 10_000
    assert "only seen synthetic" in done.stderr


@pytest.mark.slow
def test_asking_about_a_real_clip_says_what_the_model_has_seen(whole_run):
    clip = Path(__file__).resolve().parents[3] / "shared" / "data" / "videos" / "intel__bottle-detection.mp4"
    if not clip.exists():
        pytest.skip("the shared clips are not beside this repository")
    ask = [sys.executable, "-m", "mmllm", "ask", clip, "When is a bottle taken away?", "--model", whole_run / "model"]
    done = subprocess.run([*ask, "--json"], check=True, capture_output=True, text=True)
    answer = json.loads(done.stdout)
    assert answer["duration_s"] == pytest.approx(39.86, abs=0.1)
    assert "only seen synthetic clips" in answer["note"]


@pytest.mark.slow
def test_lora_leaves_a_plain_model(tiny_config, tmp_path, whole_run):
    config = tmp_path / "lora.yaml"
    config.write_text(yaml.safe_dump({**TINY, "language": {**TINY["language"], "lora_rank": 2, "max_steps": 3}}))
    run = command(tmp_path / "run", config, "--data-root", str(whole_run / "data"))
    subprocess.run(run, check=True, capture_output=True)
    from mmllm.inference.answering import VideoQA

    VideoQA.from_pretrained(tmp_path / "run" / "model")


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_recipes_can_be_saved_and_are_refused_when_changed(name, tmp_path):
    chosen, record = recipe(name), tmp_path / "recipe.json"
    claim(record, record_of(chosen))
    claim(record, record_of(chosen))
    changed = replace(chosen, seed=7)
    with pytest.raises(ConfigError, match="seed: 0 -> 7"):
        claim(record, record_of(changed))
    claim(record, record_of(changed), force=True)
    assert json.loads(record.read_text()) == json.loads(json.dumps(record_of(changed)))


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    from filelock import FileLock

    with FileLock(tmp_path / ".lock"), pytest.raises(MmllmError, match="another process is training"):
        train(recipe("smoke"), tmp_path)


def test_an_incomplete_checkpoint_is_passed_over(tmp_path):
    for step in (2, 10):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"):
            (folder / name).write_text("{}")
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    (tmp_path / "checkpoint-10" / "trainer_state.json").write_text("{")
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert not (tmp_path / "checkpoint-10").exists()
    assert latest_checkpoint(Path(tmp_path / "nowhere")) is None


@pytest.mark.slow
def test_the_papers_recipe_runs_around_pretrained_parts(tmp_path, whole_run):
    """`lita-7b` with stand-ins for Vicuna and CLIP that are as small as the tests: one linear layer, frozen CLIP."""
    from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

    from mmllm.inference.answering import VideoQA
    from mmllm.preprocessing.closed_vocabulary import word_tokenizer
    from mmllm.synthetic.questions import vocabulary

    tokenizer = word_tokenizer([*vocabulary(), "user", "assistant", ":"])
    tokenizer.save_pretrained(tmp_path / "llm")
    llama = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    LlamaForCausalLM(llama).save_pretrained(tmp_path / "llm")
    clip = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=8
    )
    CLIPVisionModel(clip).save_pretrained(tmp_path / "clip")
    small = {
        "data": {"mixture": None},  # ActivityNet-RTL's layout alone
        "model": {
            "encoder": "clip:image_size=32,patch_size=8,width=32,layers=3,heads=4,mlp_width=64",
            "encoder_weights": str(tmp_path / "clip"),
            "num_frames": 8,
        },
        "language": {"max_steps": 2, "batch_size": 2, "gradient_accumulation_steps": 2, "gradient_checkpointing": True},
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small))
    arguments = ["train", "lita-7b", "--config", tmp_path / "small.yaml", "--output", tmp_path / "run"]
    arguments += ["--language-model", tmp_path / "llm", "--data-root", whole_run / "data"]
    subprocess.run([sys.executable, "-m", "mmllm", *map(str, arguments)], check=True, capture_output=True)
    qa = VideoQA.from_pretrained(tmp_path / "run" / "model")
    size = len(tokenizer)
    assert qa.model.config.time_token_ids == list(range(size, size + 100))
    assert qa.model.get_input_embeddings().weight.shape[0] == size + 100
    assert qa.note is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reducer", "path"),
    [
        ("atp:depths=0.3+0.6,ratio=0.5", "slowfast:image_frames=8"),
        ("fastervlm:ratio=0.5", "slowfast:image_frames=8"),
        ("hired:ratio=0.5", "slowfast:image_frames=8"),
        ("pool", "slowfast:image_frames=8"),
        ("random:keep=4", "plain"),
        ("uniform:ratio=0.5", "slowfast:mode=temporal"),
        ("video_budget:total=32", "plain"),
    ],
)
def test_a_run_with_each_reducer(reducer, path, whole_run, tmp_path):
    """In the pipeline: cached encoder features and scores, training steps, a model that answers."""
    (tmp_path / "encoder").mkdir()
    shutil.copy(whole_run / "encoder" / "encoder.safetensors", tmp_path / "encoder")
    base = recipe("smoke").changed(TINY)
    data = replace(base.data, root=str(whole_run / "data"))
    model = replace(base.model, reducers=(reducer,), path=path)
    base = base.with_stage("language", max_steps=2, save_steps=2, questions_per_video=1)
    folder = train(replace(base, data=data, model=model), tmp_path, force=True, workers=0)
    qa = VideoQA.from_pretrained(folder)
    assert qa.model.config.reducers[0]["name"] == reducer.split(":")[0]
    video = next((whole_run / "data" / "videos").glob("*.mp4"))
    assert qa.ask(video, "When does the red circle spin?", max_new_tokens=4).raw is not None
