"""PyramidDrop against its rule worked out by hand, layer by layer, with transformers' own modules."""

import pytest
import torch
from nearness import assert_near
from small_llm import LENGTH, VISUAL, small_llm, small_pass, small_rows
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from mmllm import registry
from mmllm.errors import ConfigError, InputError
from mmllm.llm.harness import install
from mmllm.pruning.pyramiddrop import PyramidDropConfig, PyramidDropReducer


@pytest.fixture
def llm():
    return small_llm()


@pytest.fixture
def embeds():
    return small_rows()


def stage(**fields):
    return PyramidDropReducer(PyramidDropConfig(**{"layers": (1, 3), "ratios": (0.5, 0.25), **fields}))


@torch.no_grad()
def by_hand(llm, row, visual, layers, ratios, *, restart):
    """Logits of the last position of one row without padding, and the kept positions after each step."""
    decoder, position, kept = llm.model, torch.arange(row.shape[1])[None], []
    here, hidden, first = torch.arange(row.shape[1]), row, int(visual.sum())
    for number, layer in enumerate(decoder.layers):
        if number in layers:
            normed, attention = layer.input_layernorm(hidden), layer.self_attn
            shape = (*normed.shape[:2], -1, attention.head_dim)
            query, key = (
                project(normed).view(shape).transpose(1, 2) for project in (attention.q_proj, attention.k_proj)
            )
            query, key = apply_rotary_pos_emb(query, key, *decoder.rotary_emb(hidden, position_ids=position))
            logits = query[:, :, -1:] @ key.repeat_interleave(2, 1).mT * attention.scaling
            score = logits.softmax(-1).mean(1)[0, 0]
            seen = visual[here]
            count = int(first * ratios[layers.index(number)])
            best = score.masked_fill(~seen, -1).topk(count).indices
            keep = ~seen
            keep[best] = True
            hidden, here = hidden[:, keep], here[keep]
            position = torch.arange(len(here))[None] if restart else here[None]
            kept.append(here)
        rotary = decoder.rotary_emb(hidden, position_ids=position)
        hidden = layer(hidden, attention_mask=None, position_embeddings=rotary, position_ids=position)
    return llm.lm_head(decoder.norm(hidden))[0, -1], kept


@pytest.mark.parametrize("positions", ["restart", "keep"])
def test_two_steps_by_hand(llm, embeds, positions):
    part = stage(positions=positions)
    visual = small_pass(part).visual[0]
    expected = [by_hand(llm, row[None], visual, (1, 3), (0.5, 0.25), restart=positions == "restart") for row in embeds]
    install(llm.model)
    current, cache = small_pass(part), DynamicCache(config=llm.config)
    with torch.no_grad():
        logits = llm(inputs_embeds=embeds, llm_pass=current, past_key_values=cache).logits
    for row, (last, kept) in enumerate(expected):
        assert torch.equal(current.kept[1].position[row], kept[0])
        assert torch.equal(current.kept[3].position[row], kept[1])
        assert_near(logits[row, -1], last)
    lengths = [layer.keys.shape[2] for layer in cache.layers]
    text = LENGTH - VISUAL
    assert lengths == [LENGTH, text + 12, text + 12, text + 6, text + 6]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(llm, embeds, side):
    install(llm.model)
    part = stage()
    alone = small_pass(part, rows=1)
    with torch.no_grad():
        expected = llm(inputs_embeds=embeds[:1], llm_pass=alone).logits[0, -1]
    padding = torch.randn(1, 5, 32)
    pieces = [padding, embeds[:1]] if side == "left" else [embeds[:1], padding]
    mask = torch.ones(1, LENGTH + 5, dtype=torch.long)
    mask[:, :5] = 0
    mask = mask if side == "left" else mask.flip(-1)
    current = small_pass(part, valid=mask.bool())
    given = {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    with torch.no_grad():
        logits = llm(inputs_embeds=torch.cat(pieces, 1), llm_pass=current, **given).logits[0]
    assert_near(logits[-1 if side == "left" else LENGTH - 1], expected)


def test_the_whole_budget_changes_nothing(llm, embeds):
    plain = llm(inputs_embeds=embeds).logits
    install(llm.model)
    with torch.no_grad():
        logits = llm(inputs_embeds=embeds, llm_pass=small_pass(stage(ratios=(1.0, 1.0)))).logits
    assert_near(logits, plain)


def test_in_training_the_rows_before_answers_count(llm, embeds):
    install(llm.model)
    part = stage(layers=(1,), ratios=(0.5,)).train()
    current = small_pass(part)
    current.prompt = current.prompt.clone()
    current.prompt[:, -2:] = False  # the last two positions are an answer: those before them ask
    scores, original = [], part.prune
    asking = torch.eye(LENGTH)[-3:-1].mean(0).expand(2, -1)

    def prune(view):
        if view.layer == 1:
            scores.append(view.attention_ahead(asking))
        return original(view)

    part.prune = prune
    with torch.no_grad():
        llm(inputs_embeds=embeds, llm_pass=current)
    noted = current.notes_of(part)[1][1]
    assert_near(noted, scores[0])


def test_what_it_went_by_is_shown(llm, embeds):
    install(llm.model)
    part, current = stage(), None
    current = small_pass(part)
    assert part.explain_pass(current) is None
    with torch.no_grad():
        llm(inputs_embeds=embeds, llm_pass=current)
    shown = part.explain_pass(current).values
    assert torch.equal(shown.isfinite(), current.visual)


def test_bad_input(llm, embeds):
    for wrong in (
        {"layers": ()}, {"layers": (0, 1)}, {"layers": (3, 1)}, {"ratios": (0.5,)}, {"ratios": (0.25, 0.5)},
        {"ratios": (0.5, 0.0)}, {"ratios": (1.5, 0.5)},
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            stage(**wrong)
    with pytest.raises(ConfigError, match=r"must be below the LLM's 5 layers"):
        registry.build("reducer", "pyramiddrop").check(5)
    install(llm.model)
    embeds[0, 5] = float("nan")
    with pytest.raises(InputError, match=r"PyramidDrop: attention .* is not finite"), torch.no_grad():
        llm(inputs_embeds=embeds, llm_pass=small_pass(stage()))
