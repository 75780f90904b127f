"""Rewards of hosted models: what is drawn is what is learned, behind reducers as well."""

import pytest
import torch
from hosted_folder import save_hosted
from tiny_models import CASES
from tiny_processors import processor

from mmllm.datasets.formats import read_questions
from mmllm.hosting.model import HostedModel
from mmllm.inference.answering import VideoQA
from mmllm.inference.hosted import HostedVideoQA
from mmllm.reinforcement.hosted_policy import HostedPolicy
from mmllm.reinforcement.rewards import REWARDS
from mmllm.reinforcement.run import reinforce
from mmllm.reinforcement.settings import ReinforceConfig, ReinforceTraining
from mmllm.train.metrics import read_metrics


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3_vl", "qwen2_5_vl", "internvl", "video_llama_3"])
def test_what_is_learned_is_what_was_drawn(own_clips, name):
    qa = HostedVideoQA(HostedModel(CASES[name].model, processor(name), reducers=["evs:rate=0.5"]))
    policy = HostedPolicy(qa, read_questions(own_clips / "clips.jsonl").items[:2])
    rows = [0, 0, 1]
    torch.manual_seed(0)
    options = {"do_sample": True, "max_new_tokens": 5, "eos_token_id": None, "top_k": 0}
    options |= {"pad_token_id": 0, "suppress_tokens": list(policy.unsaid)}
    given = {"output_logits": True, "return_dict_in_generate": True}
    new = policy.sampled(qa.model.model, rows, torch.zeros(0), torch.zeros(0), options)
    assert new.shape == (3, 5)
    prompts = [torch.tensor(policy.prompt(row)) for row in rows]
    width = max(map(len, prompts))
    ids = torch.stack([torch.nn.functional.pad(one, (width - len(one), 0)) for one in prompts])
    mask = torch.stack([torch.nn.functional.pad(torch.ones_like(one), (width - len(one), 0)) for one in prompts])
    whole, seen = torch.cat([ids, new], 1), torch.cat([mask, torch.ones_like(new)], 1)
    with torch.no_grad():
        logits = policy.logits(qa.model.model, rows, whole, seen, 5)
    greedy = {**options, "do_sample": False, "top_k": None}
    for row in (0, 1):  # the cache's logits along the greedy answer against one pass over it
        out = qa.model.generate(policy._prompt(row), **greedy, **given)
        answer = out.sequences[:, -5:]
        text = torch.cat([torch.tensor([policy.prompt(row)]), answer], 1)
        with torch.no_grad():
            again = policy.logits(qa.model.model, [row], text, torch.ones_like(text), 5)[0]
        torch.testing.assert_close(again, torch.cat(out.logits), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(logits[0], logits[2], atol=1e-2)


@pytest.mark.slow
def test_a_hosted_model_learns_what_is_rewarded(own_clips, tmp_path, monkeypatch):
    folder = save_hosted("qwen3_vl", tmp_path / "base")

    def vowels(prompts, completions, **columns):
        return [sum(letter in "aeiou" for letter in text) / max(1, len(text)) for text in completions]

    monkeypatch.setitem(REWARDS, "vowels", vowels)
    training = ReinforceTraining(
        max_steps=6, batch_size=16, gradient_accumulation_steps=1, num_generations=8, learning_rate=2e-2,
        max_completion_length=6, logging_steps=1, save_steps=3, lora_rank=8, temperature=2.0,
    )  # fmt: skip
    config = ReinforceConfig(
        model=str(folder), rewards={"vowels": 1.0}, training=training, adapter_only=True, reducers=("evs:rate=0.5",)
    )
    adapter = reinforce(config, own_clips / "clips.jsonl", tmp_path / "run", workers=0)
    lines = [line for line in read_metrics(tmp_path / "run" / "language" / "metrics.jsonl") if "reward" in line]
    assert lines[-1]["reward"] > lines[0]["reward"]
    assert isinstance(VideoQA.from_pretrained(adapter), HostedVideoQA)
