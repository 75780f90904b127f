"""Shorter prompts and cuts inside the LLM together, through `HostedModel`; later turns; options that do not work."""

import pytest
import torch
from nearness import assert_near
from one_each import one_of_each
from test_carry import STEPS, KeepsRecent, alive, masked
from tiny_inputs import PLACEHOLDERS
from tiny_models import CASES
from transformers import DynamicCache, GenerationConfig

from mmllm.errors import ConfigError
from mmllm.hosting.inside import pass_of
from mmllm.hosting.model import HostedModel

GREEDY = {"max_new_tokens": STEPS, "do_sample": False, "suppress_tokens": PLACEHOLDERS}
LOGITS = {"output_logits": True, "return_dict_in_generate": True}
FULL = one_of_each(
    "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "llava_onevision", "llava_next_video", "smolvlm",
    "video_llama_3", "video_llava", "llava_next", "glm4v",
)  # fmt: skip


def kept_by_layer(inputs, prompt, current, layer):
    """bool, B N twice: positions of the whole prompt that are read at all, and those that `layer` reads."""
    read = torch.zeros_like(inputs["attention_mask"], dtype=torch.bool).scatter(1, prompt.index, prompt.present)
    inside = torch.zeros_like(read).scatter(1, prompt.index, alive(current, layer) & prompt.present)
    return read, inside


@pytest.mark.parametrize("case", FULL)
def test_narrowed_and_cut_is_the_masked_reference(case):
    inputs, layer = case.inputs(), 2
    hosted = HostedModel(case.model, reducers=["random:ratio=0.6", f"fastv:layer={layer},ratio=0.5"])
    prompt = hosted.prepare(inputs)
    out = hosted.generate(prompt, **GREEDY, **LOGITS)
    read, inside = kept_by_layer(inputs, prompt, out.past_key_values.llm_pass, layer)
    assert (inside.sum(1) < read.sum(1)).all()
    assert (read.sum(1) < inputs["attention_mask"].sum(1)).all()
    logits, ids = masked(case, inputs, {0: read, layer: inside}, steps=STEPS)
    assert torch.equal(out.sequences[:, -STEPS:], ids[:, -STEPS:])
    for ours, theirs in zip(out.logits, logits, strict=True):
        assert_near(ours, theirs)
    sizes = [record.keys.shape[2] for record in out.past_key_values.layers]
    assert sizes[0] == int(read.sum(1).max()) + STEPS - 1 == out.past_key_values.get_seq_length()
    assert sizes[layer] == int(inside.sum(1).max()) + STEPS - 1


@pytest.mark.parametrize("case", FULL)
def test_sparsevlm_without_means_is_the_masked_reference(case):
    inputs = case.inputs()
    hosted = HostedModel(case.model, stages=["sparsevlm:layers=0+1,ratios=0.6+0.3,recycled=0,positions=keep"])
    prompt = hosted.prepare(inputs)
    out = hosted.generate(prompt, **GREEDY, **LOGITS)
    current = out.past_key_values.llm_pass
    by_layer = {layer: kept_by_layer(inputs, prompt, current, layer)[1] for layer in (0, 1, 2)}
    assert (by_layer[2].sum(1) < by_layer[1].sum(1)).all()
    logits, ids = masked(case, inputs, by_layer, steps=STEPS)
    assert torch.equal(out.sequences[:, -STEPS:], ids[:, -STEPS:])
    for ours, theirs in zip(out.logits, logits, strict=True):
        assert_near(ours, theirs)


@pytest.mark.parametrize("case", FULL)
def test_sparsevlms_means_answer_alike_alone_and_in_a_batch(case):
    stages = ["sparsevlm:layers=0+1,ratios=0.4+0.2,positions=keep"]
    hosted = HostedModel(case.model, reducers=["uniform:ratio=0.8"], stages=stages)
    both = hosted.generate(case.inputs(), **GREEDY, **LOGITS)
    plain = HostedModel(case.model, reducers=["uniform:ratio=0.8"], stages=[f"{stages[0]},recycled=0"])
    without = plain.generate(case.inputs(), **GREEDY, **LOGITS)
    assert both.past_key_values.layers[1].keys.shape[2] > without.past_key_values.layers[1].keys.shape[2]
    for row in range(2):
        alone = hosted.generate(case.inputs([row]), **GREEDY)
        assert torch.equal(alone[0, -STEPS:], both.sequences[row, -STEPS:])


@pytest.mark.parametrize("name", ["qwen3_vl_mixed", "internvl", "llava_onevision"])
def test_beams_of_a_narrowed_and_cut_batch(name):
    case = CASES[name]
    hosted = HostedModel(case.model, reducers=["uniform:ratio=0.5"], stages=["fastv:layer=1"])
    options = {**GREEDY, "num_beams": 3}
    both = hosted.generate(case.inputs(), **options)
    for row in range(2):
        alone = hosted.generate(case.inputs([row]), **options)
        assert torch.equal(alone[0, -STEPS:], both[row, -STEPS:])


def test_a_later_turn_goes_on_with_the_cut_cache():
    case = CASES["qwen2_5_vl"]
    inputs = case.inputs([0])
    hosted = HostedModel(case.model, reducers=["random:ratio=0.6"], stages=["fastv:layer=2"])
    prompt = hosted.prepare(inputs)
    first = hosted.generate(prompt, **GREEDY, **LOGITS)
    current = first.past_key_values.llm_pass
    question = torch.tensor([[21, 22, 23]])
    turn = prompt.followed_by(first.sequences, question)
    second = hosted.generate(turn, past_key_values=first.past_key_values, **{**GREEDY, "max_new_tokens": 1}, **LOGITS)
    read, inside = kept_by_layer(inputs, prompt, current, 2)
    new = torch.ones(1, STEPS + 3, dtype=torch.bool)
    longer = {**inputs, "input_ids": torch.cat([inputs["input_ids"], first.sequences[:, -STEPS:], question], 1)}
    longer["attention_mask"] = torch.ones_like(longer["input_ids"])
    types = inputs["mm_token_type_ids"]
    longer["mm_token_type_ids"] = torch.cat([types, torch.zeros(1, STEPS + 3, dtype=types.dtype)], 1)
    logits, _ = masked(
        case, longer, {0: torch.cat([read, new], 1), 2: torch.cat([inside, new], 1)}, steps=1,
        positions=torch.cat([whole_positions(hosted, inputs), turn.inputs["position_ids"][..., -STEPS - 3 :]], -1),
    )  # fmt: skip
    assert_near(second.logits[0], logits[0])


def whole_positions(hosted, inputs):
    return hosted.family.positions(hosted.model, inputs, "transformers")


def test_labels_are_no_part_of_a_decision():
    case = CASES["qwen3_vl_mixed"]
    inputs = case.inputs()
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -1] = inputs["input_ids"][:, -1]
    hosted = HostedModel(case.model, stages=["fastv:layer=1"])
    current = pass_of(hosted.prepare({**inputs, "labels": labels}), hosted.stages)
    assert not current.prompt[:, -1].any()
    assert current.prompt[:, -2].all()
    out = hosted({**inputs, "labels": labels}, use_cache=False)
    assert out.loss.isfinite()


def test_places_and_frames_are_those_of_the_media():
    case = CASES["qwen3_vl_mixed"]
    inputs = case.inputs()
    hosted = HostedModel(case.model, reducers=["uniform:ratio=0.5"], stages=["fastv:layer=1"])
    prompt = hosted.prepare(inputs)
    current = pass_of(prompt, hosted.stages)
    ids = prompt.inputs["input_ids"]
    assert torch.equal(current.visual, (ids == 190) | (ids == 191))
    assert current.grid is None  # an image of 2 x 2 and videos of 4 x 4 tokens
    assert current.place[1][current.visual[1]].tolist() == list(range(int(current.visual[1].sum())))
    assert current.frame[1][current.visual[1]].tolist() == [0] * 2 + [1] * 8 + [2] * 8
    assert not (current.question & current.visual).any()
    assert current.question[:, -1].all()
    video = HostedModel(CASES["qwen3_vl"].model, reducers=["uniform:ratio=0.5"], stages=["fastv:layer=1"])
    own = pass_of(video.prepare(CASES["qwen3_vl"].inputs()), video.stages)
    assert own.grid == (4, 4)
    assert own.place[0][own.visual[0]].tolist() == [0, 2, 5, 7, 8, 10, 13, 15] * 3


def test_newlines_count_as_text():
    case = CASES["llava_onevision"]
    hosted = HostedModel(case.model, stages=["fastv:layer=1,ratio=0.1"])
    prompt = hosted.prepare(case.inputs())
    current = pass_of(prompt, hosted.stages)
    newline = torch.tensor([medium.places[medium.fixed].item() for medium in prompt.media])
    assert not current.visual.gather(1, newline.unsqueeze(1)).any()
    out = hosted.generate(prompt, **GREEDY, **LOGITS)
    assert alive(out.past_key_values.llm_pass, 1).gather(1, newline.unsqueeze(1)).all()


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "internvl"])
def test_stages_that_learn_work_in_a_hosted_model(name):
    case = CASES[name]
    hosted = HostedModel(case.model, reducers=["atp:depths=0.2+0.6,ratio=0.5"])
    (stage,) = hosted.stages
    assert not stage.training
    for head in stage.stages:
        torch.nn.init.constant_(head.head_r.bias, 0.5)
        torch.nn.init.constant_(head.head_s.bias, 8.0)
    out = hosted.generate(case.inputs(), **GREEDY, **LOGITS)
    sizes = [record.keys.shape[2] for record in out.past_key_values.layers]
    assert sizes[-1] < sizes[0]


def test_a_view_with_other_stages():
    case = CASES["qwen2_5_vl"]
    base = HostedModel(case.model, stages=["fastv:layer=2"])
    cut = base.generate(case.inputs(), **GREEDY, **LOGITS)
    narrowed = base.with_stages(reducers=["evs:ratio=0.6"])
    assert [stage.registered_name for stage in narrowed.stages] == ["fastv"]
    assert base.with_stages(stages=[]).stages == []
    single = base.with_stages(reducers="evs:ratio=0.6", stages="fastv:layer=1", context="full")
    assert [len(parts) for parts in (single.reducers, single.stages, single.context)] == [1, 2, 1]
    plain = base.with_stages(stages=[]).generate(case.inputs(), **GREEDY, **LOGITS)
    theirs = case.fresh().generate(**case.inputs(), **GREEDY, **LOGITS)
    assert all(torch.equal(a, b) for a, b in zip(plain.logits, theirs.logits, strict=True))
    assert not torch.equal(plain.logits[0], cut.logits[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_cache": False}, "get their prompt with the cache"),
        ({"generation_config": GenerationConfig(use_cache=False)}, "get their prompt with the cache"),
        ({"cache_implementation": "static"}, "need a dynamic cache"),
        ({"prefill_chunk_size": 8}, "read a prompt in one pass"),
        ({"prompt_lookup_num_tokens": 3}, "guessed tokens cannot be removed"),
    ],
)
def test_options_that_do_not_work_with_stages(options, message):
    case = CASES["qwen2_5_vl"]
    hosted = HostedModel(case.model, stages=[KeepsRecent()])
    with pytest.raises(ConfigError, match=message):
        hosted.generate(case.inputs(), **{**GREEDY, **options})


def test_a_cache_of_the_caller_is_used():
    case = CASES["qwen2_5_vl"]
    hosted, cache = HostedModel(case.model, stages=["fastv:layer=2"]), DynamicCache()
    out = hosted.generate(case.inputs(), past_key_values=cache, **GREEDY, **LOGITS)
    assert out.past_key_values is cache
    assert torch.equal(out.sequences, hosted.generate(case.inputs(), **GREEDY))


@torch.no_grad()
def test_many_questions_about_a_stored_video():
    """One row's features with their scores, for three questions with reducers and a cut, as one by one."""
    case = CASES["qwen3_vl"]
    inputs = case.inputs([0])
    hosted = HostedModel(case.model, reducers=["fastervlm:ratio=0.5,score=mean_attention", "fastv:layer=1"])
    features = hosted.encode(inputs)
    questions = []
    for last in (21, 22, 23):
        ids = inputs["input_ids"].clone()
        ids[:, -1] = last
        questions.append({**inputs, "input_ids": ids})
    rows = {
        name: torch.cat([question[name] for question in questions])
        for name in ("input_ids", "attention_mask", "mm_token_type_ids")
    }
    together = hosted.generate(rows, features.repeated(3), **GREEDY)
    for row, question in enumerate(questions):
        alone = hosted.generate(question, features, **GREEDY)
        assert torch.equal(together[row, -STEPS:], alone[0, -STEPS:])
