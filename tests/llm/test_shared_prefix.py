"""Attention over parts of the keys is that over all of them; rows that share a prefix go on as with copies of it."""

import itertools

import pytest
import torch

from mmllm.llm import joined_prefixes
from mmllm.llm.joined_prefixes import cache_behind, shares
from mmllm.llm.merging import Attended, attend, merged
from mmllm.llm.shared_prefix import SharedPrefixLayer
from mmllm.modalities.video import VideoInputs

VIDEO = 200
OPENING = [5, 9, VIDEO]
QUESTIONS = ([6, 7], [3, 8, 9, 11, 4], [10])
WAYS = {
    "greedy": {"do_sample": False},
    "beams": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
    "sampling": {"do_sample": True, "temperature": 1.5},
}


def softmax_attention(query, key, value, mask, scaling):
    """Brute force, one query after another."""
    out = torch.zeros(*query.shape[:3], value.shape[-1], dtype=query.dtype)
    for b, h, n in itertools.product(*map(range, query.shape[:3])):
        seen = mask[b, h, n].nonzero().flatten().tolist()
        weights = [float((query[b, h, n] @ key[b, h, k]) * scaling) for k in seen]
        largest = max(weights, default=0.0)
        exponents = [torch.tensor(weight - largest, dtype=torch.float64).exp() for weight in weights]
        for k, exponent in zip(seen, exponents, strict=True):
            out[b, h, n] += exponent / sum(exponents) * value[b, h, k]
    return out


@pytest.mark.parametrize("cuts", [(0, 4), (3, 3), (1, 9), (5, 9), (0, 0)])
def test_parts_put_together_are_the_whole(cuts):
    torch.manual_seed(1)
    query, key, value = (torch.randn(2, 3, count, 4, dtype=torch.float64) * 3 for count in (5, 9, 9))
    mask = torch.rand(2, 3, 5, 9) > 0.4
    mask[0, 0, 0] = False  # this query sees nothing
    expected = softmax_attention(query, key, value, mask, 0.7)
    first, last = cuts
    bounds = (slice(0, first), slice(first, last), slice(last, 9))
    parts = [attend(query, key[:, :, own], value[:, :, own], mask[..., own], 0.7) for own in bounds]
    for a, b, c in itertools.permutations(parts):  # in any order, and in any grouping
        for together in (merged(merged(a, b), c), merged(a, merged(b, c))):
            torch.testing.assert_close(together.out, expected, atol=1e-10, rtol=1e-10)
            assert not together.out.isnan().any()
    assert merged(parts[0], parts[1]).out[0, 0, 0].eq(0).all()


def test_nothing_and_huge_logits_are_no_nan():
    nothing = Attended(torch.zeros(1, 1, 1, 2), torch.full((1, 1, 1, 1), -torch.inf))
    something = Attended(torch.ones(1, 1, 1, 2), torch.full((1, 1, 1, 1), 3e4))
    for a, b in itertools.permutations((nothing, something)):
        assert torch.equal(merged(a, b).out, something.out)
    assert torch.equal(merged(nothing, nothing).out, nothing.out)
    assert torch.equal(merged(something, something).out, something.out)


@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("new", [1, 4])
def test_a_layer_attends_to_the_prefix_and_to_own_keys(new, additive):
    torch.manual_seed(2)
    prefix = [torch.randn(1, 2, 7, 8) for _ in range(2)]
    layer = SharedPrefixLayer(*prefix)
    earlier, later = ([torch.randn(3, 2, count, 8) for _ in range(2)] for count in (2, new))
    layer.update(*earlier)
    assert layer.get_seq_length() == 9
    assert layer.get_mask_sizes(new) == (9 + new, 0)
    key, value = layer.update(*later)
    query = torch.randn(3, 6, new, 8)
    mask = torch.ones(3, 1, new, 9 + new, dtype=torch.bool).tril(9)
    mask[1, :, :, 7] = False  # padding between the prefix and a question
    given = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min) if additive else mask
    out = layer.attention(query, key, value, given, None)
    whole = [torch.cat([part.expand(3, -1, -1, -1), own], 2) for part, own in zip(prefix, (key, value), strict=True)]
    expected = torch.nn.functional.scaled_dot_product_attention(query, *whole, attn_mask=mask, enable_gqa=True)
    torch.testing.assert_close(out, expected.transpose(1, 2), atol=1e-5, rtol=1e-5)
    causal = layer.attention(query, key, value, None, None)
    mask[1, :, :, 7] = True
    expected = torch.nn.functional.scaled_dot_product_attention(query, *whole, attn_mask=mask, enable_gqa=True)
    torch.testing.assert_close(causal, expected.transpose(1, 2), atol=1e-5, rtol=1e-5)


@pytest.fixture
def always(monkeypatch):
    """Shares a prefix whatever that costs."""
    monkeypatch.setattr(joined_prefixes, "LEAST_SHARED", 0)


def read(model):
    pixels = torch.randn(1, 6, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    return model.read_prefix(torch.tensor(OPENING), model.visual_sequences({"video": VideoInputs(pixels=pixels)}))


def generated(model, prefix, way):
    torch.manual_seed(5)
    rows = [OPENING + question for question in QUESTIONS]
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    options = {"max_new_tokens": 6, "eos_token_id": None, "pad_token_id": 0, **WAYS[way]}
    out = model.generate(
        ids, (ids != 0).long(), prefix=prefix, output_logits=True, return_dict_in_generate=True, **options
    )
    return out.sequences, torch.stack(out.logits, 1)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma"])
def test_rows_that_share_a_prefix_go_on_as_with_copies(make_model, monkeypatch, family, way, attention):
    model = make_model(family)
    model.language_model.set_attn_implementation(attention)
    prefix = read(model)
    copied = generated(model, prefix, way)
    monkeypatch.setattr(joined_prefixes, "LEAST_SHARED", 0)
    assert shares(prefix, 3, model.language_model.base_model)
    ids, logits = generated(model, prefix, way)
    assert torch.equal(ids, copied[0])
    torch.testing.assert_close(logits, copied[1], atol=1e-4, rtol=1e-4)
    assert logits.std(-1).min() > 0.1
    other = generated(model, read(model), way)  # the prepared LLM still reads whole prompts
    assert torch.equal(other[0], ids)


def test_the_prefix_is_held_once(make_model, always):
    model = make_model()
    prefix = read(model)
    cache = cache_behind([prefix] * 3, 2, model.language_model.base_model)
    assert all(type(layer) is SharedPrefixLayer for layer in cache.layers)
    before = [layer.keys.clone() for layer in prefix.layers]
    generated(model, prefix, "greedy")
    for layer, own, keys in zip(cache.layers, prefix.layers, before, strict=True):
        assert layer.prefix_keys is own.keys
        assert torch.equal(own.keys, keys)


def test_short_prefixes_and_single_rows_are_copied(make_model, always, monkeypatch):
    model = make_model()
    prefix, decoder = read(model), model.language_model.base_model
    assert not shares(prefix, 1, decoder)
    monkeypatch.setattr(joined_prefixes, "LEAST_SHARED", 3 * len(prefix.ids) + 1)
    assert not shares(prefix, 3, decoder)
    assert shares(prefix, 4, decoder)


def test_windows_capped_logits_and_stages_are_never_shared(make_model, always):
    for model in (
        make_model("gemma2", decoder={"sliding_window": 4}),
        make_model(context=["h2o"]),
        make_model("llama", decoder={"attn_logit_softcapping": 30.0}),
    ):
        assert not shares(read(model), 9, model.language_model.base_model)


def test_an_attention_that_does_not_get_the_prefix_is_told(make_model, always, monkeypatch):
    from mmllm.errors import ConfigError

    model = make_model()
    prefix = read(model)
    monkeypatch.setattr(SharedPrefixLayer, "attention", lambda self, query, *_: query.transpose(1, 2))
    with pytest.raises(ConfigError, match="cannot share a prefix"):
        generated(model, prefix, "greedy")
