"""Rows of text alone stay near the LLM without its adapters; rows with a video are free."""

import pytest
import torch
from torch.nn import functional

from mmllm.checkpoints.adapters import with_adapters
from mmllm.errors import ConfigError
from mmllm.modeling.base_kl import divergence, without_adapters
from mmllm.train.stages.language import LanguageStage, LanguageTraining

VIDEO, TIME_TOKENS = 200, torch.arange(100, 110)


def test_the_divergence_is_that_of_the_probabilities():
    logits, base = torch.randn(2, 5, 7)
    p, q = base.softmax(-1), logits.softmax(-1)
    torch.testing.assert_close(divergence(logits, base), (p * (p / q).log()).sum())
    assert divergence(base, base).abs() < 1e-6
    barred = torch.tensor([1, 2])
    kept = p.index_fill(1, barred, 0.0)
    kept = kept / kept.sum(-1, keepdim=True)
    torch.testing.assert_close(divergence(logits, base, barred), functional.kl_div(q.log(), kept, reduction="sum"))


def batch(*rows):
    """Rows of ids; all of them are labels."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for row, values in zip(ids, rows, strict=True):
        row[: len(values)] = torch.tensor(values)
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": ids.masked_fill(ids == 0, -100)}


TEXT, LONGER, SEEN = [1, 5, 6, 7], [1, 9, 8, 7, 6, 5], [1, VIDEO, 5, 6]


@pytest.fixture
def adapted(make_model):
    """A model whose adapters say something else than its LLM."""
    model = make_model()
    model.base_kl_weight = 1.0
    made = with_adapters(model, rank=2).train()
    for name, weight in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    return made


def kl(adapted, rows, **media):
    return adapted(**batch(*rows), **media).losses["base_kl"]


def test_it_counts_every_position_of_text_and_none_of_a_video(adapted):
    model, video = adapted.get_base_model(), {"pixel_values_videos": torch.rand(1, 2, 3, 64, 64)}
    one = kl(adapted, [TEXT])
    ids = torch.tensor([TEXT])
    with torch.no_grad():
        said = model.language_model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        with without_adapters(model):
            base = model.language_model(input_ids=ids).logits[0, :-1].index_fill(-1, TIME_TOKENS, -torch.inf)
    torch.testing.assert_close(one, functional.kl_div(said, base.softmax(-1), reduction="sum") / 3)
    assert one > 0.01

    assert kl(adapted, [SEEN], **video) == 0
    both, labels = kl(adapted, [TEXT, SEEN], **video), 3 + 2
    torch.testing.assert_close(both * labels, one * 3, rtol=1e-4, atol=1e-5)
    padded, labels = kl(adapted, [TEXT, LONGER]), 3 + 5
    torch.testing.assert_close(padded * labels, one * 3 + kl(adapted, [LONGER]) * 5, rtol=1e-4, atol=1e-5)


def test_its_gradient_leads_back_to_the_llm(adapted):
    optimizer = torch.optim.Adam([weight for weight in adapted.parameters() if weight.requires_grad], lr=3e-2)
    before = kl(adapted, [TEXT, LONGER]).item()
    for _ in range(30):
        optimizer.zero_grad()
        kl(adapted, [TEXT, LONGER]).backward()
        optimizer.step()
    assert kl(adapted, [TEXT, LONGER]) < before / 4


def test_new_adapters_are_the_llm_itself_but_for_its_time_tokens(make_model):
    model = make_model(num_time_tokens=0, time_token_ids=None)
    model.base_kl_weight = 1.0
    assert kl(with_adapters(model, rank=2).train(), [TEXT]) < 1e-6


def test_what_has_no_llm_to_stay_near_is_refused(make_model):
    for fields in ({}, {"lora_rank": 2, "chunks": 2}, {"lora_rank": 2, "packed_attention": True}):
        with pytest.raises(ConfigError, match="base_kl_weight"):
            LanguageTraining(base_kl_weight=1.0, **fields)
    inside = make_model(reducers=["fastv:layer=1,ratio=0.5"])
    with pytest.raises(ConfigError, match="stages inside the LLM"):
        LanguageStage(LanguageTraining(base_kl_weight=1.0, lora_rank=2)).check(inside)
