"""What a hosted model refuses, says in warnings, and shares."""

import copy
import logging

import pytest
import torch
import transformers
from reference import GREEDY, WITH_LOGITS, run
from tiny_models import CASES
from transformers import LlamaConfig, LlamaForCausalLM
from versions import version

import mmllm
from mmllm.errors import ConfigError, InputError
from mmllm.hosting.model import HostedModel


@pytest.fixture
def case():
    return CASES["qwen2_5_vl_mixed"]


def test_host_is_public(case):
    hosted = mmllm.host(case.model, "a processor")
    assert isinstance(hosted, HostedModel)
    assert hosted.processor == "a processor"
    assert hosted.device == torch.device("cpu")


def test_a_model_without_a_family_is_refused_by_name():
    config = LlamaConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    with pytest.raises(ConfigError, match=r"type 'llama' cannot be hosted: .*known: .*qwen2_5_vl, .*qwen3_vl"):
        HostedModel(LlamaForCausalLM(config))


def test_code_of_a_repository_is_refused(case):
    own = type("MyQwen", (type(case.model),), {"__module__": "transformers_modules.somebody.modeling"})
    model = copy.copy(case.model)
    model.__class__ = own
    with pytest.raises(ConfigError, match="MyQwen is code of a repository"):
        HostedModel(model)


def test_a_model_that_takes_no_visual_tokens_is_refused(case):
    model = copy.copy(case.model.model.language_model)
    model.config = case.model.config
    with pytest.raises(ConfigError, match=r"Qwen2_5_VLTextModel takes no mm_encoder_outputs.*5\.19"):
        HostedModel(model)


def test_unknown_positions_are_refused(case):
    with pytest.raises(ConfigError, match="positions = 'best': must be one of transformers, trained"):
        HostedModel(case.model, positions="best")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"inputs_embeds": torch.zeros(2, 3, 48)}, "inputs_embeds cannot be given"),
        ({"mm_encoder_outputs": {}}, "mm_encoder_outputs cannot be given"),
        ({"position_ids": torch.zeros(2, 3)}, "position_ids cannot be given"),
        ({"assistant_model": "small"}, "assistant model"),
    ],
)
def test_what_hosting_makes_itself_cannot_be_given(case, extra, message):
    made = run(case.name)
    with pytest.raises(InputError, match=message):
        made.host.generate(made.prompt, **extra)
    if "assistant_model" not in extra:
        with pytest.raises(InputError, match=message):
            made.host.prepare({**case.inputs(), **extra})


def test_a_mask_of_other_shape_is_refused(case):
    with pytest.raises(InputError, match="attention_mask must be B N"):
        HostedModel(case.model).prepare({**case.inputs(), "attention_mask": torch.ones(2, 1, 3, 3)})


def test_no_cache_with_gaps_in_positions_is_refused():
    made = run("llava_onevision")
    with pytest.raises(InputError, match=r"use_cache=False: .*llava_onevision"):
        made.host.generate(made.prompt, use_cache=False)
    configuration = copy.deepcopy(made.host.model.generation_config)
    configuration.use_cache = False
    with pytest.raises(InputError, match="use_cache=False"):
        made.host.generate(made.prompt, generation_config=configuration)
    whole = made.host.prepare(made.inputs)
    plain = made.host.generate(whole, use_cache=False, **GREEDY)
    assert torch.equal(plain, made.host.generate(whole, **GREEDY))


def test_no_cache_is_fine_with_several_position_axes(case):
    made = run(case.name)
    ids = made.host.generate(made.prompt, use_cache=False, **GREEDY)
    assert torch.equal(ids, made.answer.sequences)


def test_flash_attention_with_gaps_in_positions_is_refused():
    made = run("llava_onevision")
    model = copy.copy(made.host.model)
    model.config = copy.deepcopy(model.config)
    model.config.text_config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(InputError, match="flash_attention_2 takes the gaps"):
        HostedModel(model).generate(made.prompt)
    with pytest.raises(InputError, match="flash_attention_2 takes the gaps"):
        HostedModel(model)(made.prompt)


def test_trained_positions_are_used_and_named_once_where_text_overlaps(case, caplog):
    model = CASES["qwen2_5_vl"].model
    inputs = CASES["qwen2_5_vl"].inputs()
    inputs["second_per_grid_ts"] = torch.tensor([3.0, 3.0])
    host = HostedModel(model)
    with caplog.at_level(logging.WARNING):
        theirs = host.generate(inputs, **WITH_LOGITS)
        host.generate(inputs, host.encode(inputs), **GREEDY)
    assert [record.message.count('positions="trained"') for record in caplog.records] == [1]
    caplog.clear()
    trained = HostedModel(model, positions="trained")
    with caplog.at_level(logging.WARNING):
        ours = trained.generate(inputs, **WITH_LOGITS)
        at_once = trained.generate(trained.prepare(inputs), **WITH_LOGITS)
    assert not caplog.records
    assert torch.equal(ours.sequences, at_once.sequences)
    assert (ours.logits[0] - theirs.logits[0]).abs().max() > 0.1
    positions = trained.prepare(inputs).inputs["position_ids"]
    assert positions[1:, 0, -1].tolist() == positions[1:, 0, :].amax(1).tolist()


def test_trained_positions_touch_nothing_where_they_are_transformers():
    case = CASES["qwen3_vl"]
    inputs = case.inputs()
    seen = {}
    model = copy.copy(case.model)
    object.__setattr__(model, "generate", lambda **arguments: seen.update(arguments))
    HostedModel(model, positions="trained").generate(inputs)
    assert {name: id(value) for name, value in seen.items()} == {name: id(value) for name, value in inputs.items()}


def test_other_stages_share_the_model(case):
    host = HostedModel(case.model)
    other = host.with_stages(positions="trained")
    assert other.model is host.model
    assert (host.position_rule, other.position_rule) == ("transformers", "trained")


def test_a_reduction_decides_what_is_kept_and_what_stands_there(case):
    made = run(case.name)

    def reduce(inputs, features):
        assert [medium.row for medium in features.media] == [0, 1, 1]
        return made.keep, features.mapped({0: lambda rows: 2 * rows})

    host = HostedModel(case.model, reduction=reduce)
    assert torch.equal(host.choose(case.inputs(), made.features), made.keep)
    prompt = host.prepare(case.inputs())
    assert torch.equal(prompt.inputs["input_ids"], made.prompt.inputs["input_ids"])
    ours, plain = (p.outputs["video"].pooler_output for p in (prompt, made.prompt))
    assert torch.equal(ours[0], 2 * plain[0])
    assert torch.equal(ours[1], plain[1])
    assert torch.equal(host.generate(case.inputs(), **GREEDY), host.generate(prompt, **GREEDY))
    assert not torch.equal(host.generate(prompt, **GREEDY), made.answer.sequences)


def test_text_alone_is_answered_as_transformers_does(case):
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 8]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    theirs = case.model.generate(**inputs, **GREEDY)
    host = HostedModel(case.model)
    assert torch.equal(host.generate(host.prepare(inputs), **GREEDY), theirs)


def test_sampling_several_answers_uses_the_prompt_of_each(case):
    made = run(case.name)
    options = {"max_new_tokens": 8, "do_sample": True, "top_k": 1, "suppress_tokens": GREEDY["suppress_tokens"]}
    ids = made.host.generate(made.prompt, num_return_sequences=2, **options)
    assert torch.equal(ids[::2, -8:], made.new_ids[:, :8])
    assert torch.equal(ids[1::2, -8:], made.new_ids[:, :8])


def test_prompts_are_read_in_chunks_as_at_once(case):
    made = run(case.name)
    if version(transformers) < (5, 23):
        with pytest.raises(InputError, match="loses the positions of a shortened prompt"):
            made.host.generate(made.prompt, prefill_chunk_size=7, **GREEDY)
        return
    ids = made.host.generate(made.prompt, prefill_chunk_size=7, **GREEDY)
    assert torch.equal(ids, made.answer.sequences)


def test_half_precision_is_bit_equal_too(case):
    model = case.fresh().to(torch.bfloat16)
    host = HostedModel(model)
    theirs = model.generate(**case.inputs(), **WITH_LOGITS)
    ours = host.generate(case.inputs(), host.encode(case.inputs()), **WITH_LOGITS)
    assert all(torch.equal(own, their) for own, their in zip(ours.logits, theirs.logits, strict=True))


def test_adapters_stay_in_the_layers(case):
    peft = pytest.importorskip("peft")
    made = run(case.name)
    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = peft.get_peft_model(case.fresh(), lora)
    host = HostedModel(model)
    theirs = model.generate(**case.inputs(), **GREEDY)
    assert torch.equal(host.generate(case.inputs(), host.encode(case.inputs()), **GREEDY), theirs)
    length = case.inputs()["input_ids"].shape[1]
    plain = case.model.generate(**case.inputs(), **GREEDY)
    assert not torch.equal(theirs[:, length:], plain[:, length:]), "the adapter changes nothing"
    assert not torch.equal(host.generate(made.prompt, **GREEDY), made.answer.sequences)


def test_adapters_in_front_of_the_prompt_are_refused(case):
    peft = pytest.importorskip("peft")
    tokens = peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM", token_dim=48, num_layers=5)
    tokens.num_attention_heads, tokens.num_transformer_submodules = 4, 1
    with pytest.raises(ConfigError, match="tokens in front of a prompt"):
        HostedModel(peft.get_peft_model(case.fresh(), tokens))
