"""A kept prefix: the LLM goes on as if it had read the whole prompt at once, whatever stands beside it in the batch."""

import dataclasses
import gc
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from transformers import DynamicCache
from transformers.generation import GenerationMixin

from mmllm.errors import CheckpointError, ConfigError, InputError
from mmllm.inference.costs import cache_bytes
from mmllm.interfaces import LlmReducer
from mmllm.llm.cache import CACHE
from mmllm.llm.prefix import Prefix, digest_of
from mmllm.llm.values import PruneDecision
from mmllm.modalities.video import VideoInputs
from mmllm.registry import _parts, register
from mmllm.runtime.fingerprint import fingerprint

VIDEO = 200
FAMILIES = ("llama", "qwen2", "gemma", "gemma2")
OPENING = [5, 9, VIDEO]
QUESTIONS = ([6, 7], [3, 8, 9, 11, 4], [10])
HYBRID = {
    "path": "slowfast-hybrid:temporal_stride=2,min_fast_frames=2",
    "decoder_stages": [{"name": "slow-cross-attention", "every": 1}],
}
WAYS = {
    "greedy": {"do_sample": False},
    "beams": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
    "sampling": {"do_sample": True, "temperature": 1.5, "num_return_sequences": 2},
    "penalties": {"do_sample": False, "repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
}


def prompts(questions=QUESTIONS):
    """Ids and mask, padded in front."""
    rows = [OPENING + list(question) for question in questions]
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    return ids, (ids != 0).long()


def sequences(model, rows=1, seed=1):
    pixels = torch.randn(1, 6, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    found = model.visual_sequences({"video": VideoInputs(pixels=pixels)})
    return {word: sequence.select(torch.zeros(rows, dtype=torch.long)) for word, sequence in found.items()}


def read(model, **more):
    return model.read_prefix(torch.tensor(OPENING), sequences(model), **more)


def generated(model, ids, mask, way="greedy", **given):
    """New ids and the logits of each step."""
    torch.manual_seed(5)
    options = {"max_new_tokens": 6, "eos_token_id": None, "pad_token_id": 0, **WAYS[way]}
    out = model.generate(ids, mask, **given, output_logits=True, return_dict_in_generate=True, **options)
    return out.sequences, torch.stack(out.logits, 1)


def assert_alike(model, questions=QUESTIONS, way="greedy", prefix=None):
    """With the prefix, ids are those of whole prompts, and logits are as near as sums in another order allow."""
    ids, mask = prompts(questions)
    whole, own = generated(model, ids, mask, way, sequences=sequences(model, len(ids)))
    begun, continued = generated(model, ids, mask, way, prefix=read(model) if prefix is None else prefix)
    assert torch.equal(whole, begun)
    torch.testing.assert_close(continued, own, atol=1e-5, rtol=1e-5)
    assert own.std(-1).min() > 0.1  # flat logits would prove nothing


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", FAMILIES[:3])
def test_a_batch_of_questions_goes_on_as_if_all_was_read(make_model, family, way):
    assert_alike(make_model(family), way=way)


@pytest.mark.parametrize("questions", [QUESTIONS[:1], ([6, 7], [8, 9])])
@pytest.mark.parametrize("window", [4, 400])
def test_questions_of_one_length_go_on_behind_sliding_windows(make_model, questions, window):
    model = make_model("gemma2", decoder={"sliding_window": window})
    assert model.counts_padding
    assert_alike(model, questions=questions)


def test_rows_are_the_prefix_then_padding_then_the_question(make_model):
    model = make_model()
    prefix, (ids, mask) = read(model), prompts()
    rows = prefix.rows([row[own.bool()] for row, own in zip(ids, mask, strict=True)], 77)
    count = len(prefix.ids)
    assert rows["input_ids"][:, :count].tolist() == [prefix.ids.tolist()] * 3
    assert rows["input_ids"][:, count:].tolist() == [[77, 77, 77, 6, 7], [3, 8, 9, 11, 4], [77, 77, 77, 77, 10]]
    assert rows["attention_mask"][:, count:].tolist() == [[0, 0, 0, 1, 1], [1] * 5, [0, 0, 0, 0, 1]]
    assert rows["attention_mask"][:, :count].all()
    after = rows["position_ids"][:, count:] - count
    assert [row[own.bool()].tolist() for row, own in zip(after, rows["attention_mask"][:, count:], strict=True)] == [
        [0, 1], [0, 1, 2, 3, 4], [0]
    ]  # fmt: skip


def test_padding_in_front_would_be_wrong(make_model):
    """The same cache with padding where `generate` expects it: why rows are laid out otherwise."""
    model = make_model()
    prefix, (ids, mask) = read(model), prompts()
    whole, _ = generated(model, ids, mask, sequences=sequences(model, 3))
    rows = prefix.rows([row[own.bool()] for row, own in zip(ids, mask, strict=True)], 0)
    hole = rows["attention_mask"].argsort(dim=1, stable=True)  # padding first
    in_front = {name: values.gather(1, hole) for name, values in rows.items() if name != "position_ids"}
    options = {"past_key_values": prefix.cache(3), "max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    wrong = GenerationMixin.generate(model, **in_front, pad_token_id=0, **options)
    assert not torch.equal(wrong[:, -6:], whole[:, -6:])


def test_what_is_generated_does_not_change_the_prefix(make_model):
    model = make_model()
    prefix, (ids, mask) = read(model), prompts()
    before = [(layer.keys.clone(), layer.values.clone()) for layer in prefix.layers]
    for way in ("greedy", "beams"):
        generated(model, ids, mask, way, prefix=prefix)
    for layer, (keys, values) in zip(prefix.layers, before, strict=True):
        assert torch.equal(layer.keys, keys)
        assert torch.equal(layer.values, values)


def test_a_prefix_is_read_again_unless_ids_and_embeddings_are_the_same(make_model):
    model = make_model()
    first = read(model)
    assert read(model, kept=first) is first
    other_video = model.read_prefix(torch.tensor(OPENING), sequences(model, seed=2), kept=first)
    other_text = model.read_prefix(torch.tensor([5, 8, VIDEO]), sequences(model), kept=first)
    assert other_video is not first
    assert other_text is not first
    assert torch.equal(other_video.ids, first.ids)  # the ids alone do not tell
    with pytest.raises(InputError, match="does not begin"):
        other_text.rows([torch.tensor([*OPENING, 3])], 0)
    with pytest.raises(InputError, match="does not begin"):
        first.rows([torch.tensor(OPENING)], 0)  # no question behind it


def test_other_weights_and_other_types_never_share_a_prefix(make_model):
    one, other = make_model("llama"), make_model("qwen2")
    prefix, (ids, mask) = read(one), prompts()
    names = fingerprint(one.language_model), fingerprint(other.language_model)
    assert names[0] != names[1]
    with pytest.raises(CheckpointError, match=f"read by the LLM {names[0]} in float32, and .* by the LLM {names[1]}"):
        generated(other, ids, mask, prefix=prefix)
    assert read(other, kept=prefix) is not prefix
    one.to(torch.bfloat16)
    with pytest.raises(CheckpointError, match=r"float32.*converted"):
        generated(one, ids, mask, prefix=prefix)
    assert read(one, kept=prefix) is not prefix
    one.to(torch.float32)
    weight = next(one.language_model.parameters())
    prefix = read(one)
    with torch.no_grad():
        weight.mul_(1.0)  # a step of training, whatever it changes
    assert not prefix.reader.is_still(one.language_model)


def test_adapters_that_are_turned_off_are_another_llm(make_model):
    peft = pytest.importorskip("peft")
    model = make_model()
    adapted = peft.get_peft_model(model.language_model, peft.LoraConfig(target_modules=["q_proj"], r=2))
    prefix = read(model)
    assert prefix.reader.is_still(model.language_model)
    with adapted.disable_adapter():
        assert not prefix.reader.is_still(model.language_model)
    assert prefix.reader.is_still(model.language_model)


def test_times_before_frames_are_in_the_prefix(make_model):
    model, (ids, mask) = make_model(path="plain"), prompts()
    given = sequences(model)[VIDEO]
    frames = int(given.frame.max()) + 1
    text = torch.arange(2 * frames).view(1, frames, 2) % 50 + 20
    text[0, ::2, 1] = -1  # texts of one and of two ids
    timed = dataclasses.replace(given, frame_text=text)
    prefix = model.read_prefix(torch.tensor(OPENING), {VIDEO: timed})
    assert len(prefix.ids) == len(read(model).ids) + int((text >= 0).sum())
    rows = {VIDEO: timed.select(torch.zeros(3, dtype=torch.long))}
    whole, own = generated(model, ids, mask, sequences=rows)
    begun, continued = generated(model, ids, mask, prefix=prefix)
    assert torch.equal(whole, begun)
    torch.testing.assert_close(continued, own, atol=1e-5, rtol=1e-5)


def test_what_the_llm_cannot_read_is_refused_before_it_reads(make_model):
    model = make_model(decoder={"max_position_embeddings": 20}, path="plain")
    with pytest.raises(InputError, match="the LLM can read 20"):
        read(model)


def test_a_prefix_outlives_its_reader_and_says_so(make_model):
    prefix, other, (ids, mask) = read(make_model()), make_model("qwen2"), prompts()
    gc.collect()
    with pytest.raises(CheckpointError, match="a model that is gone"):
        generated(other, ids, mask, prefix=prefix)


def test_the_loop_of_generation_may_be_another(make_model):
    """A `custom_generate` gets a cache that holds the prefix, and goes on by transformers' own prefill."""
    model = make_model()
    prefix, (ids, mask) = read(model), prompts()

    def own(model, input_ids, **options):
        assert options[CACHE].get_seq_length() == len(prefix.ids) < input_ids.shape[1]
        return GenerationMixin._sample(model, input_ids, **options)

    expected, _ = generated(model, ids, mask, prefix=prefix)
    assert torch.equal(generated(model, ids, mask, prefix=prefix, custom_generate=own)[0], expected)


@pytest.mark.parametrize("family", FAMILIES[:3])
def test_bytes_are_those_of_the_formula(make_model, family):
    model = make_model(family)
    prefix = read(model)
    held = sum(part.nbytes for layer in prefix.layers for part in (layer.keys, layer.values))
    assert prefix.cache_bytes == held == cache_bytes(model.config.text_config, len(prefix.ids), 4)
    assert prefix.nbytes == held + sum(part.nbytes for part in (prefix.given, prefix.ids, prefix.position))


def test_digests_tell_types_and_shapes_apart():
    ones = torch.ones(2, 3)
    others = [ones.T, ones.half(), ones + 1, ones[:1]]
    assert digest_of(ones) == digest_of(ones.clone())
    assert len({digest_of(ones), *map(digest_of, others), digest_of(ones, about="a")}) == 6


# --- stages inside the LLM --------------------------------------------------------------------------------------


def hybrid(make_model, **settings):
    stage = {**HYBRID["decoder_stages"][0], **settings}
    model = make_model("qwen2", path=HYBRID["path"], decoder_stages=[stage])
    for layer in model.decoder_stages[0].layers.values():
        nn.init.normal_(layer.kv_proj.weight, std=0.3)
        nn.init.normal_(layer.gate.weight, std=0.5)
        nn.init.constant_(layer.warm_up, 0.7)
    return model


@pytest.mark.parametrize("queries", ["text", "text_after_visual", "all"])
@pytest.mark.parametrize("way", ["greedy", "beams"])
def test_cross_attention_to_slow_tokens_goes_on(make_model, queries, way):
    model = hybrid(make_model, queries=queries)
    prefix = read(model)
    assert prefix.current is not None
    assert prefix.nbytes > prefix.cache_bytes + prefix.position.nbytes  # the keys of slow tokens are counted, too
    assert_alike(model, way=way, prefix=prefix)


def test_other_slow_tokens_are_another_prefix(make_model):
    model = hybrid(make_model)
    first, given = read(model), sequences(model)
    given[VIDEO].cross_attention_states.mul_(2)
    assert model.read_prefix(torch.tensor(OPENING), given, kept=first) is not first


@dataclass(frozen=True, kw_only=True)
class HalfConfig:
    """Nothing to choose."""


class Half(LlmReducer):
    """Drops every other visual token before layer 1, whatever is asked."""

    depends_on_question = False

    def __init__(self, config: HalfConfig) -> None:
        super().__init__()
        self.config = config

    def prune(self, view):
        if view.layer != 1:
            return None
        visual, place = (view.before.of(part) for part in (view.current.visual, view.current.place))
        return PruneDecision(keep=~visual | (place % 2 == 0))


class ByQuestion(Half):
    """The same, but it might do otherwise for another question."""

    depends_on_question = True


class Selecting(Half):
    """A stage that selects keys may do so in later passes only."""

    def select(self, view):
        return None


@pytest.fixture
def halves():
    """Reducers under names of their own."""
    for name, cls in (("half", Half), ("by-question", ByQuestion), ("selecting", Selecting)):
        config = dataclass(frozen=True, kw_only=True)(type(f"{cls.__name__}Config", (HalfConfig,), {}))
        register("reducer", name, config=config)(cls)
    yield
    for name in ("half", "by-question", "selecting"):
        _parts["reducer"].pop(name)


@pytest.mark.parametrize("way", ["greedy", "beams"])
def test_stages_that_do_not_ask_what_follows_go_on(make_model, halves, way):
    model = make_model(decoder={"num_hidden_layers": 3}).with_stages(reducers=["half"], path="plain")
    prefix = read(model)
    assert prefix.layers[1].keys.shape[2] < prefix.layers[0].keys.shape[2] == len(prefix.ids)
    assert_alike(model, way=way, prefix=prefix)


@pytest.mark.parametrize("reducer", ["by-question", "selecting", "fastv:layer=1"])
def test_stages_that_do_are_refused_with_their_name(make_model, halves, reducer):
    model = make_model(decoder={"num_hidden_layers": 3}).with_stages(reducers=[reducer], path="plain")
    with pytest.raises(ConfigError, match=f"'{reducer.partition(':')[0]}' decides inside the LLM by what follows"):
        read(model)


def test_the_released_decoding_of_slow_fast_is_refused(make_model):
    with pytest.raises(ConfigError, match="slow-cross-attention"):
        read(hybrid(make_model, upstream_decode=True))


def test_a_cache_that_is_written_into_cannot_be_kept(make_model):
    class Written(type(DynamicCache(config=make_model().config.text_config).layers[0])):
        pass

    first = read(make_model())
    with pytest.raises(ConfigError, match="kind Written, which cannot be kept"):
        Prefix(**{**vars(first), "layers": (Written(),)})
