"""DART against its rule worked out by hand from hidden states and keys of a plain run."""

import pytest
import torch
from transformers import DynamicCache

from mmllm import registry
from mmllm.errors import ConfigError, InputError
from mmllm.llm.harness import install
from mmllm.llm.values import LlmPass
from mmllm.pruning.dart import DartConfig, DartReducer

BEFORE, VISUAL, AFTER = 3, 40, 7
LENGTH = BEFORE + VISUAL + AFTER


@pytest.fixture
def llm():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=60, max_position_embeddings=128,
        )
    ).eval()  # fmt: skip


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


def by_hand(states, size, ratio):
    """The kept visual positions of one row, by sets and plain sorting."""
    visual, text = range(BEFORE, BEFORE + VISUAL), range(BEFORE + VISUAL, LENGTH)
    pivots = [sorted(sorted(among, key=lambda i: -float(size[i]))[:4]) for among in (visual, text)]
    kept, count = set(pivots[0]), int(VISUAL * ratio / 8)
    for pivot in pivots[0] + pivots[1]:
        free = [i for i in visual if i not in kept]
        cosine = {i: float(torch.cosine_similarity(states[i], states[pivot], dim=0)) for i in free}
        kept |= set(sorted(free, key=cosine.get)[:count])
    return sorted(kept)


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("ratio", [0.222, 0.5, 1.0])
def test_by_hand(llm, embeds, layer, ratio):
    cache = DynamicCache(config=llm.config)
    with torch.no_grad():
        hidden = llm(inputs_embeds=embeds, output_hidden_states=True, past_key_values=cache).hidden_states[layer]
        if layer == 0:
            states, size = embeds, embeds.abs().sum(-1)
        else:
            states = llm.model.norm(hidden)
            size = cache.layers[layer - 1].keys.transpose(1, 2).flatten(2).abs().sum(-1)
    install(llm.model)
    current, reduced = the_pass(DartReducer(DartConfig(layer=layer, ratio=ratio))), DynamicCache(config=llm.config)
    with torch.no_grad():
        llm(inputs_embeds=embeds, llm_pass=current, past_key_values=reduced)
    kept = current.kept.get(layer, current.everything())
    for row in range(2):
        position = kept.position[row][kept.valid[row]]
        chosen = [int(i) for i in position if BEFORE <= i < BEFORE + VISUAL]
        assert chosen == by_hand(states[row], size[row], ratio)
    lengths = [cached.keys.shape[2] for cached in reduced.layers]
    assert lengths == [LENGTH] * layer + [kept.position.shape[1]] * (4 - layer)


def test_layer_zero_is_a_prompt_without_the_dropped_tokens(llm, embeds):
    """Positions stay, so the LLM run on the kept embeddings with these positions gives the same logits."""
    part = DartReducer(DartConfig(layer=0, ratio=0.3))
    install(llm.model)
    current = the_pass(part, rows=1)
    with torch.no_grad():
        logits = llm(inputs_embeds=embeds[:1], llm_pass=current).logits
        position = current.kept[0].position
        shorter = embeds[:1].gather(1, position.unsqueeze(-1).expand(-1, -1, 32))
        mask = torch.ones(1, position.shape[1], dtype=torch.long)
        expected = llm(inputs_embeds=shorter, position_ids=position, attention_mask=mask).logits
    torch.testing.assert_close(logits[0, -AFTER:], expected[0, -AFTER:], rtol=1e-4, atol=1e-4)


def test_no_visual_tokens_and_little_text(llm, embeds):
    plain = llm(inputs_embeds=embeds).logits
    install(llm.model)
    with torch.no_grad():
        logits = llm(inputs_embeds=embeds, llm_pass=the_pass(DartReducer(DartConfig()), visual=0)).logits
    torch.testing.assert_close(logits, plain)
    current = the_pass(DartReducer(DartConfig(text_pivots=20)))  # there are only seven
    with torch.no_grad():
        llm(inputs_embeds=embeds, llm_pass=current)
    assert 2 in current.kept


def test_bad_input(llm, embeds):
    for wrong in ({"layer": -1}, {"ratio": 0.0}, {"ratio": 1.5}, {"visual_pivots": 0}, {"text_pivots": -1}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            DartConfig(**wrong)
    with pytest.raises(ConfigError, match="layer = 4: must be below the LLM's 4 layers"):
        registry.build("reducer", "dart:layer=4").check(4)
    install(llm.model)
    embeds[0, 5] = float("nan")
    with pytest.raises(InputError, match="not finite"), torch.no_grad():
        llm(inputs_embeds=embeds, llm_pass=the_pass(DartReducer(DartConfig())))
