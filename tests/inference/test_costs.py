"""What an input costs by formula is what is counted and stored when it is run."""

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from mmllm.inference.costs import cache_bytes, prefill_bytes, prefill_flops

VICUNA_7B = LlamaConfig(
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    vocab_size=32000,
)
SMALL = {"hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 50}


@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("positions", [7, 40])
def test_operations_and_bytes_are_those_of_a_forward_pass(key_heads, positions):
    # eager, because older versions of torch do not count the operations of fused attention on a CPU
    config = LlamaConfig(**SMALL, num_key_value_heads=key_heads, attn_implementation="eager")
    model, cache = LlamaForCausalLM(config).eval(), DynamicCache(config=config)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(
            inputs_embeds=torch.randn(1, positions, 32),
            attention_mask=torch.ones(1, 1, positions, positions).bool(),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
    assert counter.get_total_flops() == prefill_flops(config, positions)
    stored = sum(part.nbytes for layer in cache.layers for part in (layer.keys, layer.values))
    assert stored == cache_bytes(config, positions, 4)


@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("positions", [64, 500])
def test_most_bytes_of_a_forward_pass(key_heads, positions):
    """The profiler's sum of everything that is taken and given back, at its highest."""
    config = LlamaConfig(**SMALL, num_key_value_heads=key_heads)
    model, embeddings = LlamaForCausalLM(config).eval(), torch.randn(1, positions, 32)
    with torch.no_grad(), torch.profiler.profile(profile_memory=True) as profiler:
        model(inputs_embeds=embeddings, use_cache=True, logits_to_keep=1)
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    taken = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    assert max(itertools.accumulate(taken)) == pytest.approx(prefill_bytes(config, positions, 4), rel=0.01)


def test_causal_attention_counts_the_pairs_that_are_attended():
    config = LlamaConfig(**SMALL)
    pairs = sum(1 for query in range(7) for key in range(7) if key > query)  # masked, and left out
    per_pair = 2 * 2 * 32 * 3  # scores and values, a multiply-add as two operations, 3 layers
    assert prefill_flops(config, 7) - prefill_flops(config, 7, causal=True) == pairs * per_pair


def test_bytes_after_a_reducer_inside_the_llm(make_model):
    model = make_model(reducers=["atp:depths=0.25+0.5+0.75,ratio=0.5"], path="plain", decoder={"num_hidden_layers": 4})
    for stage in model.reducers[0].stages:
        torch.nn.init.constant_(stage.head_r.bias, 0.1)
        torch.nn.init.constant_(stage.head_s.bias, 30.0)
    ids = torch.tensor([[5, 200, 6, 7]])
    cache = model(ids, pixel_values_videos=torch.randn(1, 4, 3, 64, 64), use_cache=True).past_key_values
    lengths = [layer.keys.shape[2] for layer in cache.layers]
    assert lengths[0] == 3 + 4 * 16 > lengths[-1]
    config = model.config.text_config
    stored = sum(part.nbytes for layer in cache.layers for part in (layer.keys, layer.values))
    assert stored == sum(cache_bytes(config, length, 4) for length in lengths) / len(lengths)


@pytest.mark.parametrize(("tokens", "megabytes"), [(2880, 1440), (2160, 1080), (720, 360), (290, 145), (145, 72.5)])
def test_published_cache_sizes(tokens, megabytes):
    assert cache_bytes(VICUNA_7B, tokens, 2) / 2**20 == megabytes


def test_three_quarters_fewer_tokens_cost_less_than_two_sevenths():
    question = 60
    for whole in (2048, 2880):  # Video-LLaVA's and LLaVA-NeXT's
        ratio = prefill_flops(VICUNA_7B, whole + question) / prefill_flops(VICUNA_7B, whole // 4 + question)
        assert ratio >= 3.5
    # the published table's column, whose text prompt is not given: within a tenth of it for 64 positions
    for tokens, tera in ((2880, 43.58), (1440, 21.66), (720, 11.51)):
        assert prefill_flops(VICUNA_7B, tokens + 64) / 1e12 == pytest.approx(tera, rel=0.1)
