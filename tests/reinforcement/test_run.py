"""Learning from rewards: what is drawn is learned, a killed run ends the same, bad data and models are refused."""

import json
import os
import signal
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from mmllm.datasets.formats import read_questions
from mmllm.errors import ConfigError, InputError
from mmllm.inference.answering import VideoQA
from mmllm.reinforcement.own_policy import OwnPolicy
from mmllm.reinforcement.rewards import REWARDS
from mmllm.reinforcement.run import grpo_arguments, order_of, reinforce
from mmllm.reinforcement.settings import ReinforceConfig, ReinforceTraining
from mmllm.train.building import build_model
from mmllm.train.finetune import FinetuneConfig, FinetuneTraining, finetune
from mmllm.train.metrics import read_metrics
from mmllm.train.rows import MediaLoader


def training(**fields):
    short = {"max_steps": 4, "batch_size": 4, "gradient_accumulation_steps": 2, "num_generations": 4, "save_steps": 2}
    return ReinforceTraining(**{**short, "logging_steps": 1, "max_completion_length": 12, "lora_rank": 4, **fields})


def config(base, *, seed=0, adapter_only=False, rewards=None, **fields):
    named = {} if rewards is None else {"rewards": rewards}
    return ReinforceConfig(model=str(base), seed=seed, adapter_only=adapter_only, training=training(**fields), **named)


def logged(run):
    return [line for line in read_metrics(run / "language" / "metrics.jsonl") if "reward" in line]


def told(run):
    """What a run's metrics say, but for the time that it took."""
    return [{name: value for name, value in line.items() if name != "step_time"} for line in logged(run)]


@pytest.fixture(scope="module")
def taught(own_clips, tiny_base, tmp_path_factory):
    """A model that has seen the clips for a while: it writes two times, and often wrong ones."""
    settings = FinetuneTraining(max_steps=14, batch_size=6, save_steps=100, learning_rate=1e-2, lora_rank=16)
    folder = tmp_path_factory.mktemp("taught")
    return finetune(
        FinetuneConfig(model=str(tiny_base), training=settings), own_clips / "clips.jsonl", folder, workers=0
    )


@pytest.fixture(scope="module")
def policy(own_clips, taught):
    qa = VideoQA.from_pretrained(taught)
    questions = read_questions(own_clips / "clips.jsonl").items
    return OwnPolicy(qa, questions, MediaLoader(qa.processor))


def padded(policy, rows):
    prompts = [torch.tensor(policy.prompt(row)) for row in rows]
    width = max(map(len, prompts))
    ids = torch.stack([torch.nn.functional.pad(one, (width - len(one), 0), value=0) for one in prompts])
    mask = torch.stack([torch.nn.functional.pad(torch.ones_like(one), (width - len(one), 0)) for one in prompts])
    return ids, mask


@pytest.mark.slow
def test_what_is_learned_is_what_was_drawn(policy):
    """The log-probabilities of the loss are those with which `generate` has drawn the answers."""
    rows = [0, 0, 1, 2]
    ids, mask = padded(policy, rows)
    options = {"do_sample": True, "max_new_tokens": 8, "eos_token_id": -1, "pad_token_id": 0, "top_k": 0}
    torch.manual_seed(0)
    new = policy.sampled(policy.qa.model, rows, ids, mask, options)
    assert new.shape == (4, 8)
    assert not new[0].equal(new[1])
    whole, seen = torch.cat([ids, new], 1), torch.cat([mask, torch.ones_like(new)], 1)
    with torch.no_grad():
        together = policy.logits(policy.qa.model, rows, whole, seen, 8).log_softmax(-1)
        for place, row in enumerate(rows):  # each answer step by step, from its own prompt alone
            prompt = torch.tensor([policy.prompt(row)])
            for step in range(0, 8, 3):
                text = torch.cat([prompt, new[place : place + 1, :step]], 1)
                media = policy._media([row], "cpu")
                alone = policy.qa.model(input_ids=text, media=media).logits[0, -1].log_softmax(-1)
                torch.testing.assert_close(together[place, step], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_answers_become_what_is_rewarded(own_clips, taught, tmp_path, monkeypatch):
    def early(prompts, completions, *, answered, duration_s, **columns):
        given = zip(answered, duration_s, strict=True)
        return [float(bool(spans) and spans[0][0] < seconds / 2) for spans, seconds in given]

    monkeypatch.setitem(REWARDS, "early", early)
    settings = config(taught, rewards={"early": 1.0}, max_steps=6, learning_rate=2e-2, batch_size=16, num_generations=8)
    reinforce(settings, own_clips / "clips.jsonl", tmp_path / "run", workers=0)
    values = [line["reward"] for line in logged(tmp_path / "run")]
    assert sum(values[-2:]) > sum(values[:2]) + 0.3


@pytest.mark.slow
def test_a_run_that_is_killed_ends_the_same(fork, own_clips, taught, tmp_path):
    settings, file = config(taught, max_steps=6, learning_rate=1e-3), own_clips / "clips.jsonl"
    reinforce(settings, file, tmp_path / "whole", workers=0)
    process = fork(reinforce, settings, file, tmp_path / "killed")
    while process.is_alive() and not (logged(tmp_path / "killed") and logged(tmp_path / "killed")[-1]["step"] >= 3):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (tmp_path / "killed" / "model").exists()
    assert any((tmp_path / "killed").glob("language/checkpoints/*/trainer_state.json"))
    reinforce(settings, file, tmp_path / "killed", workers=0)
    assert [line["step"] for line in logged(tmp_path / "killed")] == list(range(1, 7))
    assert told(tmp_path / "killed") == told(tmp_path / "whole")
    weights = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("killed", "whole")]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[1])


@pytest.mark.slow
def test_adapters_alone_and_all_weights(own_clips, taught, tmp_path):
    file = own_clips / "clips.jsonl"
    adapter = reinforce(config(taught, max_steps=2, adapter_only=True), file, tmp_path / "a", workers=0)
    assert adapter.name == "adapter"
    assert not (adapter / "config.json").exists()
    VideoQA.from_pretrained(adapter)
    whole = reinforce(config(taught, max_steps=2, lora_rank=0, num_iterations=2), file, tmp_path / "b", workers=0)
    old, new = load_file(taught / "model.safetensors"), load_file(whole / "model.safetensors")
    assert set(old) == set(new)
    changed = {name.split(".")[0] for name in old if not old[name].equal(new[name])}
    assert "language_model" in changed
    assert "encoder" not in changed


@pytest.mark.slow
def test_two_processes_draw_and_learn_together(together, own_clips, taught, tmp_path):
    settings = config(taught, max_steps=2, batch_size=4, gradient_accumulation_steps=1, num_generations=8)
    together(2, reinforce, settings, own_clips / "clips.jsonl", tmp_path / "run")
    assert [line["step"] for line in logged(tmp_path / "run")] == [1, 2]
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_prompts_are_an_endless_shuffle():
    order = order_of(5, 12, seed=3)
    assert order == order_of(5, 30, seed=3)[:12]
    assert sorted(order[:5]) == sorted(order[5:10]) == list(range(5))
    assert order[:5] != order[5:10] or order != order_of(5, 12, seed=4)


def test_nothing_is_sent_and_the_cpu_computes_in_float32(tmp_path):
    given = grpo_arguments(training(), tmp_path, seed=0, report_to=())
    assert given["bf16"] is torch.cuda.is_available()
    assert given["report_to"] == "none"


def rows_of(clips):
    return [json.loads(line) for line in (clips / "clips.jsonl").read_text().splitlines()]


def test_questions_without_times_are_refused_or_left_out(copied_clips, tiny_base, tmp_path):
    rows = rows_of(copied_clips)
    del rows[0]["spans"]
    file = copied_clips / "some.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=f"{rows[0]['id']}: no answer has spans"):
        reinforce(config(tiny_base), file, tmp_path / "run", workers=0)
    file.write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(InputError, match="no question whose spans are known"):
        reinforce(config(tiny_base), file, tmp_path / "run", workers=0, skip_bad=True)


def test_a_changed_setting_is_refused_with_the_difference(own_clips, tiny_base, tmp_path):
    reinforce(config(tiny_base, max_steps=1, save_steps=1), own_clips / "clips.jsonl", tmp_path / "run", workers=0)
    changed = config(tiny_base, max_steps=1, save_steps=1, rewards={"tiou": 1.0, "format": 0.1, "w1": 1.0})
    with pytest.raises(ConfigError, match=r"rewards\.w1: \(nothing\) -> 1\.0"):
        reinforce(changed, own_clips / "clips.jsonl", tmp_path / "run", workers=0)


def test_a_model_that_drops_softly_while_it_learns_is_refused(own_clips, tiny_parts, tmp_path):
    for part in build_model(replace(tiny_parts, reducers=("atp:depths=0.5,ratio=0.6",), path="plain")):
        part.save_pretrained(tmp_path / "soft")
    with pytest.raises(ConfigError, match="atp: learns with a loss of its own"):
        reinforce(config(tmp_path / "soft"), own_clips / "clips.jsonl", tmp_path / "run", workers=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_generations": 1}, "at least 2"),
        ({"temperature": 0}, "above zero"),
        ({"frozen": ()}, "includes 'encoder'"),
        ({"matrix_learning_rate": 0.1}, "learned with AdamW"),
        ({"num_iterations": 3}, "a multiple of num_iterations"),
        ({"max_completion_length": 0}, "at least 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        training(**fields)


def test_the_answers_of_a_step_are_whole_groups():
    assert training(num_generations=2).prompts == 4
    with pytest.raises(ConfigError, match="a divisor of the 8 answers of a step"):
        _ = training(num_generations=3).prompts


@pytest.mark.parametrize(
    ("rewards", "message"), [({"iou": 1.0}, "did you mean 'tiou'"), ({"tiou": 0.0}, "above zero"), ({}, "above zero")]
)
def test_unknown_rewards_are_refused(rewards, message):
    with pytest.raises(ConfigError, match=message):
        config("any", rewards=rewards)
