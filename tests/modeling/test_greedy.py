"""The own loop of greedy answers writes what transformers' loop writes, whatever stands in the batch."""

from functools import partial

import pytest
import torch
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.generation import GenerationMixin

from mmllm.decoding import reading
from mmllm.decoding.choosing import decoding_of
from mmllm.llm.roomy_layer import RoomyLayer, with_room
from mmllm.modalities.video import VideoInputs
from mmllm.modeling import generation
from mmllm.modeling.greedy import is_plain

VIDEO = 200
IDS = torch.tensor([[0, 0, 5, VIDEO, 6, 7], [5, VIDEO, 3, 9, 8, 9]])
MASK = (IDS != 0).long()
PLAIN = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "max_length": None}


def sequences(model, rows):
    pixels = torch.randn(rows, 6, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    return model.visual_sequences({"video": VideoInputs(pixels=pixels)})


@pytest.fixture
def loops(monkeypatch):
    """Which loop has written: `own` or `theirs`, for each answer."""
    seen = []
    own, theirs = generation.greedy_ids, GenerationMixin.generate

    def noted(name, loop):
        return lambda *args, **kwargs: (seen.append(name), loop(*args, **kwargs))[1]

    monkeypatch.setattr(generation, "greedy_ids", noted("own", own))
    monkeypatch.setattr(GenerationMixin, "generate", noted("theirs", theirs))
    return seen


def both(model, loops, ids, mask, **given):
    """The ids of the own loop, after a comparison with those of transformers' loop."""
    own = model.generate(ids, mask, **PLAIN, **given)
    theirs = model.generate(ids, mask, **PLAIN, **given, return_dict_in_generate=True).sequences
    assert loops == ["own", "theirs"]
    assert torch.equal(own, theirs)
    loops.clear()
    return own


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma", "gemma2"])
def test_both_loops_write_the_same(make_model, loops, family):
    model = make_model(family)
    ids = both(model, loops, IDS, MASK, sequences=sequences(model, 2), eos_token_id=None)
    assert ids.shape == (2, 14)
    end = int(ids[0, 9])  # now an answer ends with it, and the other one goes on
    ended = both(model, loops, IDS, MASK, sequences=sequences(model, 2), eos_token_id=[end, 199])
    row = ended[0, 6:].tolist()
    assert not any(row[row.index(end) + 1 :])
    assert ended[1, 6:].tolist() == ids[1, 6 : ended.shape[1]].tolist() or end in ids[1, 6:]
    assert both(model, loops, IDS[:1], MASK[:1], sequences=sequences(model, 1), eos_token_id=end)[0, -1] == end


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_both_loops_go_on_behind_a_prefix(make_model, loops, family):
    model = make_model(family)
    prefix = model.read_prefix(torch.tensor([5, VIDEO]), sequences(model, 1))
    stored = [layer.keys.clone() for layer in prefix.layers]
    ids = torch.tensor([[0, 5, VIDEO, 6, 7], [5, VIDEO, 3, 9, 8]])
    for rows in (ids[1:], ids) if family == "llama" else (ids[1:],):  # windows would count the padding
        both(model, loops, rows, (rows != 0).long(), prefix=prefix, eos_token_id=None)
    assert all(torch.equal(layer.keys, keys) for layer, keys in zip(prefix.layers, stored, strict=True))


@pytest.mark.parametrize(
    "option",
    [{"num_beams": 2}, {"do_sample": True}, {"repetition_penalty": 1.3}, {"min_new_tokens": 3}, {"use_cache": False}],
)
def test_every_other_option_goes_through_transformers(make_model, loops, option):
    model = make_model()
    model.generate(IDS, MASK, sequences=sequences(model, 2), **{**PLAIN, **option})
    assert "own" not in loops


def test_settings_of_the_model_count_as_well(make_model, loops):
    model = make_model()
    model.generation_config.repetition_penalty = 1.5
    model.generate(IDS, MASK, sequences=sequences(model, 2), **PLAIN)
    assert loops == ["theirs"]


def test_stages_inside_the_llm_go_through_transformers(make_model, loops):
    model = make_model(reducers=["fastv:layer=1,ratio=0.5"])
    model.generate(IDS, MASK, sequences=sequences(model, 2), **PLAIN)
    assert loops == ["theirs"]


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma", "gemma2"])
def test_a_method_with_a_loop_of_its_own_writes_the_same(make_model, loops, family):
    model, method = make_model(family), decoding_of("token-recycling:tree=20")
    for row in range(2):  # the first one is padded
        given = {"sequences": sequences(model, 1), **PLAIN}
        plain = model.generate(IDS[[row]], MASK[[row]], **given, eos_token_id=None)
        for end in (None, int(plain[0, 9]), [int(plain[0, 6]), 199]):  # behind four tokens, or the first
            expected = model.generate(IDS[[row]], MASK[[row]], **given, eos_token_id=end)
            loops.clear()
            for _ in range(2):  # with what was learned, drafts are right
                written = model.generate(IDS[[row]], MASK[[row]], **given, eos_token_id=end, custom_generate=method)
                assert torch.equal(written, expected)
            assert loops == []
            counts = method.last
            assert counts.new_tokens == expected.shape[1] - 6 == counts.first_tokens + sum(counts.emitted_per_round)
            assert counts.rounds == counts.target_passes - 1 == len(counts.emitted_per_round)
    assert method.total.matched > 0


@pytest.mark.parametrize(
    ("family", "attention"), [("llama", "sdpa"), ("llama", "eager"), ("gemma", "sdpa"), ("gemma2", "eager")]
)
def test_the_first_draft_is_read_together_with_a_short_prompt(make_model, monkeypatch, family, attention):
    model = make_model(family)
    model.language_model.set_attn_implementation(attention)
    given = {"sequences": sequences(model, 1), **PLAIN, "eos_token_id": None}
    expected = model.generate(IDS[1:], MASK[1:], **given)
    counts = []
    for longest in (256, 3):  # a longer prompt is read alone
        monkeypatch.setattr(reading, "_SHORT", longest)
        method = decoding_of("token-recycling")
        for _ in range(3):
            assert torch.equal(model.generate(IDS[1:], MASK[1:], **given, custom_generate=method), expected)
        counts.append(method.last)
    together, apart = counts
    assert (apart.first_tokens, together.new_tokens) == (1, apart.new_tokens)
    assert together.first_tokens > 1
    assert together.target_passes <= apart.target_passes
    assert together.matched == together.new_tokens - together.target_passes
    assert apart.matched == apart.new_tokens - apart.target_passes


def test_a_method_with_a_loop_of_its_own_goes_through_transformers_beside_other_options(make_model, loops):
    model = make_model()
    given = {"sequences": sequences(model, 1), **PLAIN, "repetition_penalty": 1.3}
    expected = model.generate(IDS[1:], MASK[1:], **given)
    method = decoding_of("token-recycling")
    assert torch.equal(model.generate(IDS[1:], MASK[1:], **given, custom_generate=method), expected)
    assert loops == ["theirs", "theirs"]
    given["repetition_penalty"] = None
    assert model.generate(IDS[1:], MASK[1:], **given, custom_generate=lambda *_, **__: IDS).shape[0] == 2
    assert loops == ["theirs"] * 3


def test_a_method_with_a_loop_of_its_own_refuses_several_texts(make_model):
    model, method = make_model(), decoding_of("token-recycling")
    with pytest.raises(ValueError, match="one text at a time, not a batch of 2"):
        model.generate(IDS, MASK, sequences=sequences(model, 2), **PLAIN, custom_generate=method)


def test_a_method_with_a_loop_of_its_own_goes_on_behind_a_prefix(make_model, loops):
    model, method = make_model(), decoding_of("token-recycling")
    prefix = model.read_prefix(torch.tensor([5, VIDEO]), sequences(model, 1))
    stored = [layer.keys.clone() for layer in prefix.layers]
    rows = IDS[1:], MASK[1:]
    expected = model.generate(*rows, **PLAIN, prefix=prefix)
    for _ in range(2):
        assert torch.equal(model.generate(*rows, **PLAIN, prefix=prefix, custom_generate=method), expected)
    assert loops == ["own"]
    assert all(torch.equal(layer.keys, keys) for layer, keys in zip(prefix.layers, stored, strict=True))


def test_only_such_a_method_starts_from_a_prefix(make_model):
    method, other = decoding_of("token-recycling"), decoding_of("spectr")
    takes = [make_model().takes_prefix({"custom_generate": way}) for way in (method, partial(method), other, print)]
    assert takes == [True, True, False, False]
    assert not make_model("gemma2").takes_prefix({"custom_generate": method})  # a window would drop positions


@pytest.mark.parametrize("limit", [None, 0, "8"])
def test_a_number_of_tokens_has_to_be_asked_for(limit):
    assert not is_plain({"max_new_tokens": limit})
    assert is_plain({"max_new_tokens": 3, "do_sample": False, "max_length": None, "use_cache": True})


def test_a_cache_without_layers_makes_layers_with_room():
    cache = with_room(DynamicCache(), 3)
    new = torch.randn(1, 3, 4, 8)
    for layer in (0, 1):
        assert torch.equal(cache.update(new, new, layer)[0], new)
    assert [(type(layer), layer.room) for layer in cache.layers] == [(RoomyLayer, 3)] * 2


@pytest.mark.parametrize("start", [0, 5])
def test_a_layer_with_room_grows_as_one_that_copies(start):
    torch.manual_seed(1)
    plain, other = DynamicLayer(), DynamicLayer()
    if start:
        given = [torch.randn(1, 3, start, 4).expand(2, -1, -1, -1) for _ in range(2)]
        plain.update(*given), other.update(*given)
    roomy = RoomyLayer.behind(other, 3)
    before = None if start == 0 else other.keys.clone()
    for count in (4, 1, 1, 1, 1, 6):  # more than there is room for
        new = [torch.randn(2, 3, count, 4) for _ in range(2)]
        for wanted, given in zip(plain.update(*new), roomy.update(*new), strict=True):
            assert torch.equal(wanted, given)
        assert roomy.get_seq_length() == plain.get_seq_length()
    assert before is None or torch.equal(other.keys, before)
