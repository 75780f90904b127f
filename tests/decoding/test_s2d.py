"""S2D: each exit is a model of its own, and no layer computes a token twice."""

import pytest
import torch
from nearness import assert_near

from mmllm import registry
from mmllm.decoding.drafter import own_llm
from mmllm.decoding.exit_reader import ExitReader


def reader_of(model, exits, ids, mask=None):
    mask = torch.ones_like(ids) if mask is None else mask
    return ExitReader(model, exits, model.get_input_embeddings()(ids), mask)


def embedded(model, ids):
    return model.get_input_embeddings()(torch.tensor([ids]))


def truncated(model, layers, ids):
    """The logits of a model with its first layers only."""
    short = model if layers == len(model.model.layers) else own_llm(model, layers)
    return short(torch.tensor([ids])).logits[0, -1]


@torch.no_grad()
@pytest.mark.parametrize("padding", [0, 2])
def test_each_exit_is_the_truncated_network(make_decoder, padding):
    model, ids = make_decoder(num_hidden_layers=4), [5, 9, 11, 4]
    given = torch.tensor([[0] * padding + ids])
    reader = reader_of(model, (1, 3, 4), given, torch.tensor([[0] * padding + [1] * len(ids)]))
    # exits are asked in another order for each token: deeper layers catch up, whatever waits for them
    for word, deepest in ((7, 0), (8, 2), (30, 1), (31, 0), (32, 2), (33, 1)):
        reader.append(embedded(model, [word]))
        ids.append(word)
        for segment, layers in enumerate((1, 3, 4)[: deepest + 1]):
            assert_near(reader.logits(segment), truncated(model, layers, ids))


@torch.no_grad()
def test_what_is_taken_back_leaves_no_trace(make_decoder):
    model, ids = make_decoder(num_hidden_layers=3), [5, 9, 11, 4]
    reader = reader_of(model, (1, 2, 3), torch.tensor([ids]))
    for word, deepest in ((7, 0), (8, 2), (30, 1), (31, 0)):
        reader.append(embedded(model, [word]))
        for segment in range(deepest + 1):
            reader.logits(segment)
    for length in (7, 5, 4):  # behind, among and before tokens that deeper layers have computed
        reader.cut(length)
        ids = [5, 9, 11, 4, 7, 8, 30][:length]
        ids.append(50 + length)
        reader.append(embedded(model, ids[-1:]))
        for segment in range(3):
            assert_near(reader.logits(segment), truncated(model, segment + 1, ids))


@torch.no_grad()
def test_no_layer_computes_a_token_twice(make_decoder):
    model = make_decoder(num_hidden_layers=4)
    counted = dict.fromkeys(range(4), 0)
    for number, layer in enumerate(model.model.layers):
        layer.register_forward_pre_hook(
            lambda _module, arguments, number=number: counted.update({number: counted[number] + arguments[0].shape[1]})
        )
    reader = reader_of(model, (1, 2, 4), torch.tensor([[5, 9, 11, 4]]))
    for word, deepest in ((7, 0), (8, 2), (30, 1), (31, 0), (32, 2), (33, 0)):
        reader.append(embedded(model, [word]))
        for segment in range(deepest + 1):
            reader.logits(segment)
    assert counted == {0: 10, 1: 9, 2: 9, 3: 9}
    assert reader.done == [10, 9, 9]


def method_of(model, settings):
    return registry.build("decoding", f"s2d:draft=given,exits=1+2,{settings}", draft_model=model)


def counts_of(make_decoder, settings):
    model = make_decoder(eos_token_id=None)
    method = method_of(make_decoder(seed=5), settings)
    model.generate(torch.tensor([[5, 9, 11]]), custom_generate=method, do_sample=False, max_new_tokens=14)
    return method.last


def test_a_threshold_of_zero_takes_the_first_exit_and_one_above_one_the_last(make_decoder):
    first, last = counts_of(make_decoder, "threshold=0"), counts_of(make_decoder, "threshold=1.1")
    assert first.extra["exit_2"] == last.extra["exit_1"] == 0
    assert first.extra["exit_1"] == first.drafted
    assert last.extra["exit_2"] == last.drafted
    assert first.extra["layer_positions"] < last.extra["layer_positions"]


def test_between_them_both_exits_are_used(make_decoder):
    counts = counts_of(make_decoder, "threshold=0.2")
    assert counts.extra["exit_1"] > 0
    assert counts.extra["exit_2"] > 0
    assert counts.extra["exit_1"] + counts.extra["exit_2"] == counts.drafted


def test_one_exit_drafts_as_a_model_of_these_layers_does(make_decoder):
    model, draft = make_decoder(eos_token_id=None), make_decoder(seed=5)
    ids, rounds = torch.tensor([[5, 9, 11]]), []
    for method in (
        method_of(draft, "threshold=0"),
        registry.build("decoding", "fastdraft:draft=given", draft_model=own_llm(draft, 1)),
    ):
        model.generate(ids, custom_generate=method, do_sample=False, max_new_tokens=14)
        rounds.append((method.last.emitted_per_round, method.last.drafted))
    assert rounds[0] == rounds[1]


def test_samples_are_those_of_plain_sampling_with_the_same_seed(make_decoder, prompts):
    model = make_decoder()
    method = method_of(make_decoder(seed=5), "threshold=0.2")
    options = {"do_sample": True, "temperature": 0.7, "top_k": 20, "max_new_tokens": 10}
    for seed, ids in enumerate(prompts(6)):
        torch.manual_seed(seed)
        expected = model.generate(ids, **options)
        torch.manual_seed(seed)
        assert torch.equal(model.generate(ids, custom_generate=method, **options), expected)
