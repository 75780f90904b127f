"""FastV against attention weights of transformers' own eager attention, and what must hold of positions and cache."""

from itertools import pairwise

import pytest
import torch
from nearness import assert_near
from small_llm import AFTER, BEFORE, LENGTH, VISUAL, small_llm
from transformers import DynamicCache

from mmllm import registry
from mmllm.errors import ConfigError, InputError
from mmllm.llm.harness import install
from mmllm.llm.values import LlmPass
from mmllm.pruning.fastv import FastvConfig, FastvReducer, averaged_into_kept


@pytest.fixture
def llm():
    return small_llm()


@pytest.fixture
def embeds():
    return torch.randn(2, LENGTH, 32, generator=torch.Generator().manual_seed(1))


def the_pass(stage, rows=2, visual=VISUAL):
    number = torch.arange(LENGTH).expand(rows, -1)
    everywhere = torch.ones(rows, LENGTH, dtype=torch.bool)
    return LlmPass(
        visual=(number >= BEFORE) & (number < BEFORE + visual), question=number >= BEFORE + VISUAL, prompt=everywhere,
        place=(number - BEFORE).clamp(0), frame=torch.zeros_like(number), valid=everywhere, stages=(stage,),
    )  # fmt: skip


def run(model, embeds, current, **options):
    with torch.no_grad():
        return model(inputs_embeds=embeds, llm_pass=current, **options)


@pytest.mark.parametrize("layer", [1, 2, 4])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
def test_the_tokens_that_the_last_position_attends_to_are_kept(llm, embeds, layer, ratio):
    """An independent reading of the same rule: attention maps of transformers' eager attention, top of the last row."""
    llm.set_attn_implementation("eager")
    row = llm(inputs_embeds=embeds, output_attentions=True).attentions[layer - 1].mean(1)[:, -1]
    count = round(VISUAL * ratio)
    expected = row[:, BEFORE : BEFORE + VISUAL].topk(count).indices.sort(-1).values + BEFORE
    install(llm.model)
    current, cache = the_pass(FastvReducer(FastvConfig(layer=layer, ratio=ratio))), DynamicCache(config=llm.config)
    run(llm, embeds, current, past_key_values=cache)
    kept = current.kept[layer]
    assert kept.position.shape == (2, BEFORE + count + AFTER)
    assert torch.equal(kept.position[:, BEFORE : BEFORE + count], expected)
    assert torch.equal(kept.position, kept.position.sort(-1).values)
    lengths = [cached.keys.shape[2] for cached in cache.layers]
    assert lengths == [LENGTH] * layer + [LENGTH - VISUAL + count] * (5 - layer)


def test_kept_tokens_keep_their_positions_and_the_others_have_no_influence(llm, embeds):
    """The later layers, run by hand on what is kept with its own positions, give the same logits."""
    install(llm.model)
    current = the_pass(FastvReducer(FastvConfig(layer=2, ratio=0.25)))
    out = run(llm, embeds, current, use_cache=False).logits
    position, decoder, hidden = current.kept[2].position, llm.model, embeds
    whole = torch.arange(LENGTH).expand(2, -1)
    with torch.no_grad():
        for number, layer in enumerate(decoder.layers):
            if number == 2:
                hidden = hidden.gather(1, position.unsqueeze(-1).expand(-1, -1, 32))
                whole = position
            rotary = decoder.rotary_emb(hidden, position_ids=whole)
            hidden = layer(hidden, attention_mask=None, position_embeddings=rotary, position_ids=whole)
        expected = llm.lm_head(decoder.norm(hidden))
    assert_near(out[:, -AFTER:], expected[:, -AFTER:])


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
def test_dropped_tokens_are_averaged_one_after_the_other_into_the_most_similar_kept_one(llm, embeds, ratio):
    """A plain loop over the states before the layer, then the later layers on what is kept."""
    install(llm.model)
    current = the_pass(FastvReducer(FastvConfig(layer=2, ratio=ratio, merge=True)))
    out = run(llm, embeds, current, use_cache=False).logits
    position, decoder = current.kept[2].position, llm.model
    dropping = the_pass(FastvReducer(FastvConfig(layer=2, ratio=ratio)))
    run(llm, embeds, dropping)
    assert torch.equal(position, dropping.kept[2].position)
    with torch.no_grad():
        hidden, whole = embeds, torch.arange(LENGTH).expand(2, -1)
        for number, layer in enumerate(decoder.layers):
            if number == 2:
                hidden = merged_by_hand(hidden, position).gather(1, position.unsqueeze(-1).expand(-1, -1, 32))
                whole = position
            rotary = decoder.rotary_emb(hidden, position_ids=whole)
            hidden = layer(hidden, attention_mask=None, position_embeddings=rotary, position_ids=whole)
        expected = llm.lm_head(decoder.norm(hidden))
    assert_near(out[:, -AFTER:], expected[:, -AFTER:])


def merged_by_hand(hidden, position):
    hidden = hidden.clone()
    for states, kept in zip(hidden, position.tolist(), strict=True):
        visual = range(BEFORE, BEFORE + VISUAL)
        before, staying = states.clone(), [place for place in visual if place in kept]
        for place in (place for place in visual if place not in kept):
            alike = [float(torch.cosine_similarity(before[place], before[other], dim=0)) for other in staying]
            best = staying[alike.index(max(alike))]
            states[best] = (states[best] + states[place]) / 2
    return hidden


def test_merging_with_the_whole_budget_or_without_visual_tokens_changes_nothing(llm, embeds):
    plain = llm(inputs_embeds=embeds).logits
    install(llm.model)
    merging = FastvReducer(FastvConfig(ratio=1.0, merge=True))
    assert_near(run(llm, embeds, the_pass(merging)).logits, plain)
    few = FastvReducer(FastvConfig(ratio=0.3, merge=True))
    torch.testing.assert_close(run(llm, embeds, the_pass(few, visual=0)).logits, plain)


def test_merging_many_tokens_into_one_keeps_its_type():
    states = torch.randn(200, 8, generator=torch.Generator().manual_seed(0)).half()
    kept = torch.arange(200) == 7
    merged = averaged_into_kept(states, kept, ~kept)
    assert merged.dtype == torch.float16
    assert torch.equal(merged[~kept], states[~kept])
    by_hand = states[7].double()
    for state in states[~kept].double():
        by_hand = (by_hand + state) / 2
    assert_near(merged[7], by_hand.half())


def test_the_whole_budget_changes_nothing(llm, embeds):
    plain = llm(inputs_embeds=embeds).logits
    install(llm.model)
    everything = the_pass(FastvReducer(FastvConfig(ratio=1.0)))
    assert_near(run(llm, embeds, everything).logits, plain)
    assert everything.kept[2].position.shape[1] == LENGTH


def test_no_visual_tokens(llm, embeds):
    plain = llm(inputs_embeds=embeds).logits
    install(llm.model)
    torch.testing.assert_close(run(llm, embeds, the_pass(FastvReducer(FastvConfig()), visual=0)).logits, plain)


def test_a_larger_budget_keeps_a_superset(llm, embeds):
    install(llm.model)
    kept = []
    for ratio in (0.1, 0.3, 0.6, 1.0):
        current = the_pass(FastvReducer(FastvConfig(ratio=ratio)))
        run(llm, embeds, current)
        kept.append([set(row.tolist()) for row in current.kept[2].position])
    for fewer, more in pairwise(kept):
        assert all(a < b for a, b in zip(fewer, more, strict=True))


def test_what_it_went_by_is_shown(llm, embeds):
    install(llm.model)
    stage = FastvReducer(FastvConfig(ratio=0.25))
    current = the_pass(stage)
    assert stage.explain_pass(current) is None
    run(llm, embeds, current)
    shown = stage.explain_pass(current).values
    assert torch.equal(shown.isfinite(), current.visual)
    for row, position in zip(shown, current.kept[2].position, strict=True):
        visual = position[(position >= BEFORE) & (position < BEFORE + VISUAL)]
        dropped = torch.ones(LENGTH, dtype=torch.bool)
        dropped[position] = False
        assert row[visual].min() >= row[dropped].max()


def test_bad_input(llm, embeds):
    for wrong in ({"layer": 0}, {"ratio": 0.0}, {"ratio": 1.5}, {"ratio": float("nan")}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            FastvConfig(**wrong)
    with pytest.raises(ConfigError, match="layer = 5: must be below the LLM's 5 layers"):
        registry.build("reducer", "fastv:layer=5").check(5)
    install(llm.model)
    embeds[0, 5] = float("nan")
    with pytest.raises(InputError, match="attention that is not finite"):
        run(llm, embeds, the_pass(FastvReducer(FastvConfig())))
    assert FastvReducer(FastvConfig(ratio=0.01)).kept(24) == 1
    assert FastvReducer(FastvConfig()).kept(5) == 3
