"""Stages inside a hosted decoder: passes travel on the cache, cuts equal a masked reference, also among deepstack."""

import copy
import functools
import threading

import pytest
import torch
from nearness import assert_near
from one_each import one_of_each
from tiny_inputs import IMAGE, PLACEHOLDERS, VIDEO
from tiny_models import CASES
from transformers import StaticCache

from mmllm import registry
from mmllm.errors import ConfigError, InputError
from mmllm.hosting.carry import carrying, check_stages, has_pass, pass_of_prompt, prepare
from mmllm.hosting.family import family_of
from mmllm.interfaces import LlmStage
from mmllm.llm.cache import CACHE

STEPS = 4
GREEDY = {"max_new_tokens": STEPS, "do_sample": False, "suppress_tokens": PLACEHOLDERS}
LOGITS = {"output_logits": True, "return_dict_in_generate": True}
FULL = one_of_each(
    "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "llava_onevision", "llava_next_video", "smolvlm",
    "video_llama_3", "perception_lm", "video_llava", "llava", "llava_next", "glm4v", "fast_vlm",
)  # fmt: skip


def fastv(layer=2, ratio=0.5):
    return registry.build("reducer", {"name": "fastv", "layer": layer, "ratio": ratio})


def a_pass(inputs, *stages):
    ids, valid = inputs["input_ids"], inputs["attention_mask"].bool()
    visual = ((ids == IMAGE) | (ids == VIDEO)) & valid
    number = visual.long().cumsum(1) - 1
    return pass_of_prompt(
        place=number, frame=torch.zeros_like(number), visual=visual, valid=valid, grid=None, stages=stages
    )


@torch.no_grad()
def cut(model, inputs, current, **options):
    """Generated ids and logits of a model with stages."""
    prepare(model)
    return model.generate(**inputs, **{CACHE: carrying(None, current), **GREEDY, **LOGITS, **options})


@torch.no_grad()
def masked(case, inputs, kept, steps=STEPS, positions=None):
    """Logits and ids of transformers' own model; from layer L on, layers see only the positions `kept[L]` (B P)."""
    model, seen = case.fresh(), dict(kept)

    def hide(start, _module, args, kwargs):
        length = (args[0] if args else kwargs["hidden_states"]).shape[1]
        visible = torch.ones(length, length, dtype=torch.bool).tril() & seen[start][:, None, None, :]
        visible = visible | torch.eye(length, dtype=torch.bool)
        lowest = torch.finfo(torch.float32).min
        kwargs["attention_mask"] = torch.zeros(visible.shape).masked_fill(~visible, lowest)
        return args, kwargs

    for number, layer in enumerate(model.get_decoder().layers):
        starts = [start for start in kept if start <= number]
        if starts:
            layer.register_forward_pre_hook(functools.partial(hide, max(starts)), with_kwargs=True)
    now, all_logits = dict(inputs), []
    if positions is None:
        positions = family_of(model.config).positions(model, inputs, "transformers")
    for _ in range(steps):
        logits = model(**now, position_ids=positions, use_cache=False).logits[:, -1]
        all_logits.append(logits)
        token = logits.index_fill(-1, torch.tensor(PLACEHOLDERS), -torch.inf).argmax(-1, keepdim=True)
        positions = torch.cat([positions, positions[..., -1:] + 1], -1)
        seen |= {start: torch.cat([keys, torch.ones_like(token).bool()], 1) for start, keys in seen.items()}
        now["input_ids"] = torch.cat([now["input_ids"], token], 1)
        now["attention_mask"] = torch.cat([now["attention_mask"], torch.ones_like(token)], 1)
        for name in ("mm_token_type_ids", "token_type_ids"):
            if name in now:
                now[name] = torch.cat([now[name], torch.zeros_like(token).to(now[name].dtype)], 1)
    return all_logits, now["input_ids"]


def alive(current, layer):
    """bool, B P: the positions on which a layer worked."""
    kept = current.kept_at(layer)
    rows = torch.zeros_like(current.valid)
    return rows.scatter(1, kept.position, kept.valid)


def compare(case, layer, inputs=None):
    inputs = case.inputs() if inputs is None else inputs
    stage = fastv(layer)
    current = a_pass(inputs, stage)
    out = cut(case.model, inputs, current)
    kept = alive(current, layer)
    assert (kept & current.visual).sum(1).tolist() == [stage.kept(int(n)) for n in current.visual.sum(1)]
    assert torch.equal(kept & ~current.visual, current.valid & ~current.visual)
    logits, ids = masked(case, inputs, {layer: kept})
    assert torch.equal(out.sequences[:, -STEPS:], ids[:, -STEPS:])
    for ours, theirs in zip(out.logits, logits, strict=True):
        assert_near(ours, theirs)
    return out


@pytest.mark.parametrize("case", FULL)
def test_a_cut_is_the_masked_reference(case):
    out = compare(case, 2)
    length = case.inputs()["input_ids"].shape[1]
    sizes = [layer.keys.shape[2] for layer in out.past_key_values.layers]
    assert sizes[:2] == [length + STEPS - 1] * 2
    assert all(size < sizes[0] for size in sizes[2:])
    assert out.past_key_values.get_seq_length() == length + STEPS - 1


@pytest.mark.parametrize("layer", [1, 2, 3, 4])
@pytest.mark.parametrize("case", one_of_each("qwen3_vl"))
def test_cuts_among_the_deepstack_layers(case, layer):
    compare(case, layer)


@pytest.mark.parametrize("case", FULL)
def test_nothing_is_cut_is_transformers_own(case):
    theirs = case.fresh().generate(**case.inputs(), **GREEDY, **LOGITS)
    ours = cut(case.model, case.inputs(), a_pass(case.inputs(), fastv(2, 1.0)))
    assert torch.equal(ours.sequences, theirs.sequences)
    for logits, own in zip(ours.logits, theirs.logits, strict=True):
        assert_near(logits, own)
    # without a pass, the hooks do nothing
    plain = case.model.generate(**case.inputs(), **GREEDY, **LOGITS)
    assert all(torch.equal(logits, own) for logits, own in zip(plain.logits, theirs.logits, strict=True))


BEAMS = {"num_beams": 3, "max_new_tokens": 4}


@pytest.mark.parametrize("case", one_of_each("qwen2_5_vl", "qwen3_vl", "internvl", "llava_next_video", "smolvlm"))
def test_beams_of_a_batch_are_those_of_its_rows(case):
    if not case.upstream_beams:
        pytest.skip("beams over its videos crash in this version of transformers")
    both = cut(case.model, case.inputs(), a_pass(case.inputs(), fastv(1)), **BEAMS).sequences
    for row in range(2):
        inputs = case.inputs([row])
        alone = cut(case.model, inputs, a_pass(inputs, fastv(1)), **BEAMS).sequences
        assert torch.equal(alone[0, -4:], both[row, -4:])


@pytest.mark.parametrize("name", ["qwen3_vl", "internvl"])
def test_several_samples_of_a_prompt(name):
    case = CASES[name]
    out = cut(case.model, case.inputs(), a_pass(case.inputs(), fastv(1)), do_sample=True, num_return_sequences=2)
    assert len(out.sequences) == 4


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen2_5_vl", "llava_onevision"])
def test_settings_of_threads_do_not_meet(name):
    case = CASES[name]
    prepare(case.model)
    wanted = {
        ratio: cut(case.model, case.inputs(), a_pass(case.inputs(), fastv(2, ratio))).sequences
        for ratio in (0.1, 0.5, 1.0)
    }
    wrong = []

    def ask(ratio):
        for _ in range(3):
            said = cut(case.model, case.inputs(), a_pass(case.inputs(), fastv(2, ratio))).sequences
            if not torch.equal(said, wanted[ratio]):
                wrong.append(ratio)

    threads = [threading.Thread(target=ask, args=(ratio,)) for ratio in [*wanted, *wanted]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_hooks_are_hung_once():
    model = CASES["qwen3_vl"].fresh()
    for _ in range(3):
        prepare(model)
    decoder = model.get_decoder()
    assert len(decoder._forward_pre_hooks) == 1
    assert [len(layer._forward_hooks) for layer in decoder.layers] == [1, 1, 1, 0, 2]


def test_a_forward_takes_the_pass_as_a_keyword():
    case = CASES["qwen3_vl"]
    prepare(case.model)
    inputs = case.inputs()
    current = a_pass(inputs, fastv(1))
    positions = case.model._prepare_position_ids_for_generation(inputs["input_ids"], dict(inputs))
    with torch.no_grad():
        logits = case.model(**inputs, position_ids=positions, use_cache=False, llm_pass=current).logits
    reference, _ = masked(case, inputs, {1: alive(current, 1)}, steps=1)
    assert_near(logits[:, -1], reference[0])


class KeepsRecent(LlmStage):
    """The text in front and the newest keys stay."""

    evicts = True
    registered_name = "keeps-recent"

    def evict(self, view):
        from mmllm.llm.values import KeptKeys

        count = view.keys.shape[2]
        slots = torch.arange(max(0, count - 20), count)
        return KeptKeys(index=slots.expand(len(view.keys), 1, -1))


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "llava_onevision"])
def test_keys_can_be_evicted(name):
    case = CASES[name]
    out = cut(case.model, case.inputs(), a_pass(case.inputs(), KeepsRecent()))
    assert {layer.keys.shape[2] for layer in out.past_key_values.layers} == {20}
    plain = case.model.generate(**case.inputs(), **GREEDY)
    assert not torch.equal(plain, out.sequences)


@pytest.mark.parametrize("case", one_of_each("gemma3", "qwen3_5"))
def test_decoders_with_other_layers_are_refused_with_the_way_out(case):
    with pytest.raises(
        ConfigError, match=r"fastv: stages work only in layers.*(sliding_attention|linear_attention).*evs, uniform"
    ):
        check_stages(case.model.get_decoder(), [fastv()])
    check_stages(case.model.get_decoder(), [])


def test_what_is_refused():
    model = CASES["qwen2_5_vl"].model
    decoder = model.get_decoder()
    with pytest.raises(ConfigError, match="must be below the LLM's 5 layers"):
        check_stages(decoder, [fastv(5)])
    states = registry.build("decoder_stage", "slow-cross-attention:every=2", decoder=decoder.config)
    with pytest.raises(ConfigError, match="tokens beside the sequence"):
        check_stages(decoder, [states])
    inputs = CASES["qwen2_5_vl"].inputs()
    with pytest.raises(ConfigError, match="DynamicCache, not StaticCache"):
        carrying(StaticCache(config=decoder.config, max_cache_len=9), a_pass(inputs, fastv()))
    other = CASES["qwen2_5_vl"].inputs([0])
    with pytest.raises(InputError, match="the pass is for rows of"):
        cut(model, inputs, a_pass({**other, "input_ids": other["input_ids"][:, 3:], "attention_mask":
                                   other["attention_mask"][:, 3:]}, fastv()))  # fmt: skip


def test_a_finished_cache_needs_no_new_pass():
    case = CASES["qwen2_5_vl"]
    out = cut(case.model, case.inputs(), a_pass(case.inputs(), fastv()))
    assert has_pass(out.past_key_values)
    assert has_pass(copy.deepcopy(out.past_key_values))
    assert not has_pass(None)
