"""Cross-attention to slow tokens: the original's layer, a whole model by hand, caches, batches, beams, training.

B rows, P positions, S slow tokens, H heads, D width
"""

import dataclasses
import json
import threading
from pathlib import Path

import pytest
import torch
from einops import rearrange, repeat
from nearness import assert_near
from safetensors import safe_open
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2Config, Qwen2Model, Qwen3Config
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from versions import counts_every_attention, puts_whole_models_on_disk

from mmllm.errors import ConfigError, InputError
from mmllm.inference.costs import costs_inside, prefill_flops
from mmllm.llm.harness import install
from mmllm.llm.stages.slow_cross_attention import SlowCrossAttention, SlowCrossAttentionConfig
from mmllm.llm.values import LlmPass
from mmllm.modalities.image import ImageInputs
from mmllm.modalities.video import VideoInputs
from mmllm.modeling.placeholders import place
from mmllm.tokens import VisualSequence, VisualTokens

GOLDEN = Path(__file__).parents[2] / "data" / "slowfast-hybrid-layer.safetensors"
STAGE = {"name": "slow-cross-attention", "every": 2}
PATH = "slowfast-hybrid:temporal_stride=2,min_fast_frames=2"
IDS = torch.tensor([[0, 0, 5, 200, 6, 7], [9, 5, 200, 3, 9, 8]])
MASK = (IDS != 0).long()
FAMILIES = ["llama", "qwen2", "gemma"]


@pytest.fixture(scope="module")
def hybrid(make_model):
    """Makes a model whose gates are open, with cross-attention in layers 0 and 2 of 4."""

    def make(family="qwen2", attention="sdpa", opened=0.7, **settings):
        decoder = {"num_hidden_layers": 4, "attn_implementation": attention}
        model = make_model(family, decoder=decoder, path=PATH, decoder_stages=[{**STAGE, **settings}])
        for layer in model.decoder_stages[0].layers.values():
            nn.init.normal_(layer.kv_proj.weight, std=0.3)
            nn.init.normal_(layer.gate.weight, std=0.5)
            nn.init.constant_(layer.warm_up, opened)
        return model

    return make


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(2, 6, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def sequences(model, pixels):
    return model.visual_sequences({"video": VideoInputs(pixels=pixels)})


def generated(model, given, ids=IDS, mask=MASK, **options):
    """Ids R N and logits R N V of each new token."""
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0, **options}
    out = model.generate(
        ids, attention_mask=mask, sequences=given, output_logits=True, return_dict_in_generate=True, **options
    )
    return out.sequences[:, ids.shape[1] :], torch.stack(out.logits, dim=1)


@torch.no_grad()
def logits(model, pixels, ids=IDS, mask=MASK, **options):
    """Logits B P V of a prompt, and its valid positions (bool, B P)."""
    out = model(ids, attention_mask=mask, pixel_values_videos=pixels, **options)
    given = place(ids, mask, sequences(model, pixels))
    return out.logits, given.attention_mask.bool()


# --- the original, and the whole by hand ----------------------------------------------------------------------


def golden():
    with safe_open(GOLDEN, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["config"])  # noqa: SIM118


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_layer_is_the_originals(attention):
    tensors, config = golden()
    for name in ("cross_attn_implementation", "cross_attn_gating_type", "layer_idx"):
        config.pop(name)
    decoder = Qwen2Model(Qwen2Config(**config, attn_implementation=attention)).eval()
    install(decoder)
    stage = SlowCrossAttention(SlowCrossAttentionConfig(max_layer=1), decoder=decoder.config)
    state = {name.removeprefix("state."): value for name, value in tensors.items() if name.startswith("state.")}
    decoder.layers[0].load_state_dict({name: value for name, value in state.items() if "cross_attn" not in name})
    names = {
        "cross_attn_kv_proj.": "kv_proj.",
        "cross_attn_gate_proj.0.": "gate.",
        "cross_attn_warm_up_gate": "warm_up",
    }
    stage.layers["0"].load_state_dict(
        {
            name.replace(f"self_attn.{theirs}", ours): value
            for name, value in state.items()
            for theirs, ours in names.items()
            if theirs in name
        }
    )
    kind, valid = tensors["in.token_type"], tensors["in.attention_mask"]
    visible = torch.ones(14, 14, dtype=torch.bool).tril() & valid[:, None, None, :]

    def output():
        nothing = torch.zeros_like(kind)
        current = LlmPass(
            visual=kind == 3, question=kind == 1, prompt=valid, place=nothing, frame=nothing, valid=valid,
            stages=(stage,), cross_attention_states=tensors["in.slow_tokens"],
            cross_attention_mask=tensors["in.slow_mask"],
        )  # fmt: skip
        return decoder.layers[0](
            tensors["in.hidden_states"],
            attention_mask=torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min),
            position_embeddings=(tensors["in.cos"], tensors["in.sin"]),
            llm_pass=current,
        )

    with torch.no_grad():
        torch.testing.assert_close(output()[valid], tensors["out.hidden_states"][valid], rtol=0, atol=1e-5)
        stage.layers["0"].warm_up.zero_()
        torch.testing.assert_close(output()[valid], tensors["out.hidden_states_gate_off"][valid], rtol=0, atol=1e-5)


def by_hand(model, placed, *, mixes):
    """Logits B P V without hooks or cache: the steps of a hybrid layer as the paper's code has them."""
    decoder, stage = model.language_model.base_model, model.decoder_stages[0]
    x, valid = model.embed(placed.input_ids, placed.visual), placed.attention_mask.bool()
    rotation = decoder.rotary_emb(x, (placed.attention_mask.cumsum(1) - 1).clamp(min=0))
    count = x.shape[1]
    causal = torch.ones(count, count, dtype=torch.bool).tril() & valid[:, None, None, :] | torch.eye(count).bool()
    for number, layer in enumerate(decoder.layers):
        own, h = layer.self_attn, layer.input_layernorm(x)
        q, k, v = (rearrange(part(h), "b p (h d) -> b h p d", d=8) for part in (own.q_proj, own.k_proj, own.v_proj))
        q, k = apply_rotary_pos_emb(q, k, *rotation)
        k, v = (repeat(part, "b g p d -> b (g r) p d", r=2) for part in (k, v))
        scores = (q @ k.mT / 8**0.5).masked_fill(~causal, -torch.inf)
        a = rearrange(scores.softmax(-1) @ v, "b h p d -> b p (h d)")
        if str(number) in stage.layers:
            cross = stage.layers[str(number)]
            u = cross.kv_proj(layer.input_layernorm(placed.cross_attention_states))
            u = repeat(u, "b s (g two d) -> two b (g r) s d", two=2, d=8, r=2)
            scores = (q @ u[0].mT / 8**0.5).masked_fill(~placed.cross_attention_mask[:, None, None], -torch.inf)
            c = rearrange(scores.softmax(-1) @ u[1], "b h p d -> b p (h d)")
            gate = cross.gate(a).tanh() * (cross.warm_up if mixes is None else cross.warm_up.tanh())
            a = a + (1.0 if mixes is None else mixes.unsqueeze(-1)) * gate * c
        x = x + own.o_proj(a)
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return model.lm_logits(decoder.norm(x)), valid


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("queries", ["text", "text_after_visual", "all"])
def test_logits_are_those_of_the_formula(hybrid, pixels, family, queries):
    model = hybrid(family, queries=queries)
    placed = place(IDS, MASK, sequences(model, pixels))
    visual = placed.place >= 0
    text = ~visual & placed.attention_mask.bool()
    behind = text & (visual.cumsum(1) > 0)
    expected, valid = by_hand(model, placed, mixes={"text": text, "text_after_visual": behind, "all": None}[queries])
    assert_near(logits(model, pixels)[0][valid], expected[valid])
    if queries == "text_after_visual":
        assert not torch.allclose(expected[valid], by_hand(model, placed, mixes=text)[0][valid])


# --- a closed gate, and a set of tokens -----------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", [*FAMILIES, "qwen3"])
def test_with_closed_gates_the_llm_is_itself_bit_for_bit(
    make_model, hybrid, decoder_configs, pixels, family, attention
):
    if family == "qwen3":
        sizes = {name: value for name, value in decoder_configs["qwen2"](num_hidden_layers=4).to_dict().items()
                 if name not in ("model_type", "layer_types", "rope_parameters", "architectures")}  # fmt: skip
        config = Qwen3Config(**sizes, attn_implementation=attention)
        hybrid_model = make_model(text_config=config, path=PATH, decoder_stages=[STAGE])
    else:
        hybrid_model = hybrid(family, attention, opened=0.0)
    plain = hybrid_model.with_stages(decoder_stages=[])
    assert torch.equal(logits(hybrid_model, pixels)[0], logits(plain, pixels)[0])
    labels = IDS.where(MASK.bool() & (IDS != 200), -100)
    losses = [
        model(IDS, attention_mask=MASK, pixel_values_videos=pixels, labels=labels) for model in (hybrid_model, plain)
    ]
    assert torch.equal(losses[0].loss, losses[1].loss)
    given = sequences(plain, pixels)
    for options in ({}, {"num_beams": 3}):
        assert torch.equal(generated(hybrid_model, given, **options)[1], generated(plain, given, **options)[1])
    for layer in hybrid_model.decoder_stages[0].layers.values():
        nn.init.constant_(layer.warm_up, 0.7)
    assert not torch.allclose(logits(hybrid_model, pixels)[0], logits(plain, pixels)[0], atol=1e-3)


def changed(sequence, **fields):
    return {200: dataclasses.replace(sequence, **fields)}


def test_slow_tokens_are_a_set_and_masked_ones_do_not_count(hybrid, pixels):
    model = hybrid()
    sequence = sequences(model, pixels)[200]
    states, mask = sequence.cross_attention_states, sequence.cross_attention_mask.clone()
    mask[1, 5:9] = False
    start = generated(model, changed(sequence, cross_attention_mask=mask))[1]
    order = torch.randperm(states.shape[1], generator=torch.Generator().manual_seed(2))
    turned = changed(sequence, cross_attention_states=states[:, order], cross_attention_mask=mask[:, order])
    torch.testing.assert_close(generated(model, turned)[1], start, rtol=0, atol=1e-5)
    zeroed = states.masked_fill(~mask.unsqueeze(-1), 0.0)
    again = generated(model, changed(sequence, cross_attention_states=zeroed, cross_attention_mask=mask))[1]
    assert torch.equal(again, start)
    other = generated(model, changed(sequence, cross_attention_states=states.flip(0), cross_attention_mask=mask))[1]
    assert not torch.allclose(other, start, atol=1e-3)


def test_rows_of_visual_tokens_do_not_change_in_the_layer(hybrid, pixels):
    model = hybrid("llama", max_layer=1)
    placed = place(IDS, MASK, sequences(model, pixels))
    hidden = []
    for chosen in (model, model.with_stages(decoder_stages=[])):
        arguments = chosen._decoder_inputs(placed)
        hidden.append(chosen.language_model.base_model(**arguments, output_hidden_states=True).hidden_states[1])
    visual = placed.place >= 0
    assert torch.equal(hidden[0][visual], hidden[1][visual])
    assert not torch.equal(hidden[0][placed.place == -1], hidden[1][placed.place == -1])


# --- caches, batches, beams -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("queries", ["text", "text_after_visual", "all"])
def test_answers_with_a_cache_are_those_without(hybrid, pixels, family, queries):
    model = hybrid(family, queries=queries).double()  # so that a difference is no rounding
    given = sequences(model, pixels)
    ids, cached = generated(model, given)
    same_ids, whole = generated(model, given, use_cache=False)
    assert torch.equal(ids, same_ids)
    torch.testing.assert_close(cached, whole, rtol=0, atol=1e-5)
    assert_near(cached, whole)


def test_a_row_answers_alone_as_in_a_batch(hybrid, pixels):
    model = hybrid()
    given = sequences(model, pixels)
    _, both = generated(model, given)
    for row, skipped in ((0, 2), (1, 0)):
        own = {200: given[200].select(torch.tensor([row]))}
        _, alone = generated(model, own, IDS[row : row + 1, skipped:], MASK[row : row + 1, skipped:])
        assert_near(both[row], alone[0])


def test_a_short_and_a_long_video_answer_as_each_alone(hybrid, pixels):
    model = hybrid()
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[0, 3:] = False
    pixels = torch.cat([pixels[:, :3], pixels[:, 2:3].expand(-1, 3, -1, -1, -1)], dim=1)  # as short videos are padded
    given = model.visual_sequences({"video": VideoInputs(pixels=pixels, frame_mask=mask)})
    _, both = generated(model, given)
    short = model.visual_sequences({"video": VideoInputs(pixels=pixels[:1, :3])})
    _, alone = generated(model, short, IDS[:1], MASK[:1])
    assert_near(both[0], alone[0])


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}])
def test_beams_keep_their_slow_tokens(hybrid, pixels, options):
    model = hybrid()
    given = sequences(model, pixels)
    ids = generated(model, given, **options)[0]
    assert torch.equal(ids, generated(model, given, **options, use_cache=False)[0])
    assert len(ids) == 2 * options.get("num_return_sequences", 1)
    for row in range(2):
        own = {200: given[200].select(torch.tensor([row]))}
        alone = generated(model, own, IDS[row : row + 1], MASK[row : row + 1], **options)[0]
        assert torch.equal(ids.view(2, -1, 6)[row], alone)


def test_several_samples_of_a_prompt_each_see_the_slow_tokens(hybrid, pixels):
    model = hybrid()
    given = sequences(model, pixels)
    torch.manual_seed(3)
    options = {"do_sample": True, "num_return_sequences": 3, "top_k": 0}
    ids, sampled = generated(model, given, **options)
    again = model.generate(
        torch.cat([IDS.repeat_interleave(3, 0), ids[:, :-1]], 1),
        attention_mask=torch.cat([MASK.repeat_interleave(3, 0), torch.ones_like(ids[:, :-1])], 1),
        sequences={200: given[200].select(torch.arange(2).repeat_interleave(3))},
        max_new_tokens=1, output_logits=True, return_dict_in_generate=True, do_sample=False, pad_token_id=0,
    )  # fmt: skip
    assert_near(sampled[:, -1], again.logits[0])


@torch.no_grad()
@pytest.mark.parametrize("queries", ["text", "text_after_visual"])
def test_several_new_positions_at_once_are_read_as_one_after_another(hybrid, pixels, queries):
    model = hybrid(queries=queries)
    new = torch.tensor([[3, 9, 4], [8, 2, 7]])
    both = []
    for steps in ([new], new.split(1, dim=1)):
        cache = model(IDS, attention_mask=MASK, pixel_values_videos=pixels, use_cache=True).past_key_values
        valid = place(IDS, MASK, sequences(model, pixels)).attention_mask
        rows = []
        for ids in steps:
            valid = torch.cat([valid, torch.ones_like(ids)], dim=1)
            position = (valid.cumsum(1) - 1)[:, -ids.shape[1] :]
            options = {"attention_mask": valid, "position_ids": position, "past_key_values": cache}
            rows.append(model.language_model(ids, **options, use_cache=True).logits)
        both.append(torch.cat(rows, dim=1))
    assert_near(both[0], both[1])


def test_the_cache_keeps_keys_and_values_and_no_slow_tokens(hybrid, pixels):
    model = hybrid()
    out = model(IDS, attention_mask=MASK, pixel_values_videos=pixels, use_cache=True)
    cache = out.past_key_values
    slow = sequences(model, pixels)[200].cross_attention_states.shape[1]
    assert cache.llm_pass.cross_attention_states is None
    kept = [layer.state_of(0) for layer in cache.layers]
    assert [sorted(state) for state in kept[::2]] == [["has_visual", "keys", "values", "visible"]] * 2
    assert kept[1] == kept[3] == {}
    assert kept[0]["keys"].shape == kept[0]["values"].shape == (2, 2, slow, 8)
    cache.batch_repeat_interleave(2)
    assert torch.equal(cache.layers[0].state_of(0)["keys"][1], kept[0]["keys"][0])


def test_the_released_decoding_leaves_slow_tokens_out_after_the_prompt(hybrid, pixels):
    model = hybrid()
    released = model.with_stages(decoder_stages=[{**STAGE, "upstream_decode": True}])
    given = sequences(model, pixels)
    ids, consistent = generated(model, given)
    inputs = {"attention_mask": MASK, "pixel_values_videos": pixels, "use_cache": True}
    with torch.no_grad():  # both read the same words
        cache = released(IDS, **inputs).past_key_values
        by_hand = model(IDS, **inputs).past_key_values
        by_hand.llm_pass.stages = ()  # the release's mistake: only the prompt has seen slow tokens
        valid, table = place(IDS, MASK, given).attention_mask, []
        for new in ids[:, :-1].split(1, dim=1):
            valid = torch.cat([valid, torch.ones_like(new)], dim=1)
            options = {"attention_mask": valid, "position_ids": valid.sum(1, keepdim=True) - 1, "use_cache": True}
            both = [
                model.language_model(new, past_key_values=filled, **options).logits[:, -1]
                for filled in (cache, by_hand)
            ]
            assert_near(both[0], both[1])
            table.append(both[0])
    upstream_ids, upstream = generated(released, given)
    assert torch.equal(upstream[:, 0], consistent[:, 0])
    assert torch.equal(upstream_ids[:, 0], ids[:, 0])
    assert_near(upstream[:, 1], table[0])
    assert not torch.allclose(table[0], consistent[:, 1], atol=1e-3)  # from the second word on
    # without a cache, the released code sees slow tokens in every step
    assert_near(generated(released, given, use_cache=False)[1], consistent)


def test_two_threads_and_a_text_between_do_not_meet(hybrid, pixels):
    model = hybrid()
    one, other = (sequences(model, pixels)[200].select(torch.tensor([row, row])) for row in (0, 1))
    alone = [generated(model, {200: one})[0], generated(model, {200: other})[0]]
    wrong = []

    def ask(given, expected):
        for _ in range(5):
            if not torch.equal(generated(model, {200: given})[0], expected):
                wrong.append(given)

    threads = [threading.Thread(target=ask, args=pair) for pair in zip((one, other), alone, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    words = torch.tensor([[5, 6, 7]])
    plain = model.with_stages(decoder_stages=[])
    assert torch.equal(model(words).logits, plain(words).logits)
    assert torch.equal(generated(model, {}, words, words * 0 + 1)[1], generated(plain, {}, words, words * 0 + 1)[1])


def test_a_row_of_text_beside_a_video_is_read_as_the_llm_reads_it(hybrid, pixels):
    model = hybrid()
    ids = torch.tensor([[5, 200, 6, 7], [5, 6, 7, 8]])
    given = sequences(model, pixels[:1])
    both = generated(model, given, ids, torch.ones_like(ids))[1]
    text = generated(model.with_stages(decoder_stages=[]), {}, ids[1:], torch.ones_like(ids[1:]))[1]
    assert_near(both[1:], text)


def test_an_image_is_read_with_all_its_patches(hybrid):
    model = hybrid()
    image = torch.randn(1, 3, 64, 64)
    ids = torch.tensor([[5, 201, 6, 7]])
    assert sequence_of_image(model, image).cross_attention_states.shape[1] == 16  # a video's frame has 4
    out = model(ids, pixel_values=image).logits
    plain = model.with_stages(decoder_stages=[])(ids, pixel_values=image).logits
    assert out.shape[1] == 3 + 16
    assert not torch.allclose(out, plain, atol=1e-3)


def sequence_of_image(model, image):
    return model.visual_sequences({"image": ImageInputs(pixels=image)})[201]


@pytest.mark.parametrize("reducers", [["fastervlm:keep=4"], ["fastv:layer=1,ratio=0.5"], ["pool:stride=2"]])
def test_reducers_work_in_front_and_inside(make_model, pixels, reducers):
    decoder = {"num_hidden_layers": 4}
    stage = {**STAGE, "kv_init": "random"}
    model = make_model("qwen2", decoder=decoder, path=PATH, decoder_stages=[stage], reducers=reducers).double()
    for layer in model.decoder_stages[0].layers.values():
        nn.init.constant_(layer.warm_up, 0.7)
    given = sequences(model, pixels)
    ids, cached = generated(model, given)
    same_ids, whole = generated(model, given, use_cache=False)
    assert torch.equal(ids, same_ids)
    assert_near(cached, whole)


# --- weights: saved, trained, frozen, shared ------------------------------------------------------------------


def test_weights_are_saved_with_the_model(hybrid, pixels, tmp_path):
    model = hybrid()
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again, pixels)[0], logits(model, pixels)[0])
    assert sum("decoder_stages.0.layers" in name for name in model.state_dict()) == 10


@puts_whole_models_on_disk
def test_weights_on_disk_answer_as_in_memory(hybrid, pixels, tmp_path):
    model = hybrid()
    model.save_pretrained(tmp_path / "model")
    options = {"device_map": {"": "disk"}, "offload_folder": tmp_path / "disk"}
    apart = type(model).from_pretrained(tmp_path / "model", **options).eval()
    assert apart.decoder_stages[0].layers["0"].kv_proj.weight.is_meta
    inputs = {"input_ids": IDS, "attention_mask": MASK, "pixel_values_videos": pixels}
    with torch.no_grad():
        assert torch.equal(apart(**inputs).logits, model(**inputs).logits)
    greedy = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(apart.generate(**inputs, **greedy), model.generate(**inputs, **greedy))


def test_a_file_without_the_stages_weights_starts_with_closed_gates(hybrid, pixels, tmp_path):
    model = hybrid()
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("decoder_stages")}
    model.save_pretrained(tmp_path, state_dict=state)
    torch.empty(10_000_000).fill_(float("nan"))  # what was in memory before
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert all(weight.isfinite().all() for weight in loaded.decoder_stages.parameters())
    assert torch.equal(logits(loaded, pixels)[0], logits(model.with_stages(decoder_stages=[]), pixels)[0])


@torch.no_grad()
def test_half_precision_answers(hybrid, pixels):
    model = hybrid().bfloat16()
    given = sequences(model, pixels)
    cached = generated(model, given)[1]
    assert cached.isfinite().all()
    whole = generated(model.float(), sequences(model, pixels))[1]
    assert (cached[:, 0] - whole[:, 0]).abs().max() < 0.1 * whole.abs().max()


def test_gates_open_in_training_with_and_without_checkpointing(hybrid, pixels):
    labels = IDS.where(MASK.bool() & (IDS != 200), -100)
    gradients = []
    for checkpointing in (False, True):
        model = hybrid(opened=0.0).train()
        model.freeze("encoder", "language_model")
        if checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        model(IDS, attention_mask=MASK, pixel_values_videos=pixels, labels=labels).loss.backward()
        own = dict(model.decoder_stages.named_parameters())
        assert own["0.layers.0.warm_up"].grad.abs() > 0
        assert own["0.layers.0.kv_proj.weight"].grad.abs().max() == 0  # the gate is closed
        assert model.language_model.base_model.layers[0].self_attn.o_proj.weight.grad is None
        gradients.append(own["0.layers.2.warm_up"].grad)
    assert_near(gradients[1], gradients[0])
    opened = hybrid().train()
    opened(IDS, attention_mask=MASK, pixel_values_videos=pixels, labels=labels).loss.backward()
    assert all(weight.grad.abs().max() > 0 for weight in opened.decoder_stages.parameters())
    assert opened.visual_tokenizer.weight.grad.abs().max() > 0


def test_questions_of_a_video_share_a_row(hybrid, pixels):
    model = hybrid()
    shared = torch.tensor([[5, 200, 6, 7, 8, 9, 3, 4]])
    segments = torch.tensor([[0, 0, 1, 1, 1, 2, 2, 2]])
    apart = torch.tensor([[5, 200, 6, 7, 8], [5, 200, 9, 3, 4]])
    both = model(shared, pixel_values_videos=pixels[:1], labels=shared.masked_fill(shared == 200, -100),
                 segment_ids=segments).logits  # fmt: skip
    alone = model(
        apart, pixel_values_videos=pixels[:1].repeat(2, 1, 1, 1, 1), labels=apart.masked_fill(apart == 200, -100)
    ).logits
    assert_near(both[0, 2:5], alone[0, 2:])
    assert_near(both[0, 5:8], alone[1, 2:])


@pytest.mark.parametrize("kv_init", ["aligned", "scrambled", "random"])
def test_new_weights_start_from_the_llms_own(hybrid, kv_init):
    model = hybrid("qwen2", kv_init=kv_init)
    layers = model.language_model.base_model.layers
    nn.init.normal_(layers[2].self_attn.k_proj.bias)
    stage, own = model.decoder_stages[0], layers[2].self_attn
    before = stage.layers["2"].kv_proj.weight.clone()
    stage.start_from(layers)
    weight, bias = stage.layers["2"].kv_proj.weight, stage.layers["2"].kv_proj.bias
    whole = torch.cat([own.k_proj.weight, own.v_proj.weight])  # K0 K1 V0 V1, 8 rows each
    if kv_init == "random":
        assert torch.equal(weight, before)
        return
    order = [0, 2, 1, 3] if kv_init == "aligned" else [0, 1, 2, 3]
    assert torch.equal(weight, whole.unflatten(0, (4, 8))[order].flatten(0, 1))
    assert torch.equal(bias, torch.cat([own.k_proj.bias, own.v_proj.bias]).unflatten(0, (4, 8))[order].flatten())
    normed = torch.randn(1, 3, 32)
    keys, values = stage.layers["2"].keys_and_values(normed, torch.float32)
    if kv_init == "aligned":
        assert_near(rearrange(keys, "b g s d -> b s (g d)"), own.k_proj(normed))
        assert_near(rearrange(values, "b g s d -> b s (g d)"), own.v_proj(normed))
    else:  # the release reads two heads of keys as keys and values of the first
        assert_near(torch.cat([keys[:, 0], values[:, 0]], -1), own.k_proj(normed))


def test_other_settings_keep_the_weights_and_other_layers_are_refused(hybrid, pixels):
    model = hybrid()
    other = model.with_stages(decoder_stages=[{**STAGE, "queries": "text_after_visual"}])
    assert other.decoder_stages[0].layers["0"] is model.decoder_stages[0].layers["0"]
    assert not torch.equal(logits(other, pixels)[0], logits(model, pixels)[0])
    with pytest.raises(ConfigError, match="decoder_stages: 'slow-cross-attention' has weights of its own"):
        model.with_stages(decoder_stages=[{**STAGE, "every": 1}])
    plain = model.with_stages(decoder_stages=[], path="plain")
    assert plain.llm_stages == []
    assert len(plain.decoder_stages) == 0


# --- what a prompt costs ---------------------------------------------------------------------------------------


QWEN2_7B = Qwen2Config(
    hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4,
    vocab_size=152064,
)  # fmt: skip


@pytest.mark.parametrize("text", [50, 300])
def test_operations_of_a_prompt_grow_by_four_percent_from_16_to_128_frames(text):
    fast = 16 * 81
    with torch.device("meta"):
        stage = SlowCrossAttention(SlowCrossAttentionConfig(), decoder=QWEN2_7B)

    def hybrid_flops(frames):
        return prefill_flops(QWEN2_7B, fast + text) + stage.prompt_flops(frames * 81, text)

    assert hybrid_flops(128) / hybrid_flops(16) <= 1.04
    assert hybrid_flops(128) / prefill_flops(QWEN2_7B, fast + text) <= 1.05  # a plain model of 16 frames
    assert prefill_flops(QWEN2_7B, 128 * 81 + text) / hybrid_flops(128) >= 6
    share = stage.prompt_flops(128 * 81, text) / prefill_flops(QWEN2_7B, fast + text)
    assert 0.015 < share < 0.03
    assert stage.cached_numbers(10) == 4 * 2 * 10 * 512
    assert costs_inside(["slow-cross-attention"], QWEN2_7B, 10) == (stage.prompt_flops(10, 0), 4 * 2 * 10 * 512)


@counts_every_attention
@torch.no_grad()
@pytest.mark.parametrize("frames", [16, 128])
def test_measured_operations_are_those_of_the_formula(make_model, frames):
    decoder = {"num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 192, "head_dim": 16}
    path = "slowfast-hybrid:min_fast_frames=4,temporal_stride=" + str(frames // 4)
    model = make_model("qwen2", decoder=decoder, path=path, decoder_stages=[STAGE])
    features = torch.randn(1, frames, 16, 16)
    given = {200: model.arrange(VisualTokens(features=features, grid=(4, 4)))}
    placed = place(torch.tensor([[5, 200, 6, 7, 8]]), torch.ones(1, 5, dtype=torch.long), given)
    arguments = model._decoder_inputs(placed)
    with FlopCounterMode(display=False) as counter:
        model.language_model(**arguments, use_cache=True, logits_to_keep=1)
    text, slow = 4, frames * 4
    expected = prefill_flops(model.config.text_config, 16 + text)
    expected += model.decoder_stages[0].prompt_flops(slow, text)
    assert abs(counter.get_total_flops() / expected - 1) < 0.01


# --- bad input ------------------------------------------------------------------------------------------------


def test_bad_settings(make_model):
    with pytest.raises(ConfigError, match="every = 0: must be at least 1"):
        SlowCrossAttentionConfig(every=0)
    with pytest.raises(ConfigError, match="max_layer = 2: must be above min_layer = 3"):
        SlowCrossAttentionConfig(min_layer=3, max_layer=2)
    with pytest.raises(ConfigError, match=r"queries.*text_after_visual"):
        make_model(path=PATH, decoder_stages=["slow-cross-attention:queries=everything"])
    with pytest.raises(ConfigError, match="max_layer = 28: the LLM has 2 layers"):
        make_model(path=PATH, decoder_stages=["slow-cross-attention:max_layer=28"])
    with pytest.raises(ConfigError, match="min_layer = 2: the LLM has 2 layers"):
        make_model(path=PATH, decoder_stages=["slow-cross-attention:min_layer=2"])
    with pytest.raises(ConfigError, match=r"path 'plain' gives none: choose path .*slowfast-hybrid, or decoder_stages"):
        make_model(path="plain", decoder_stages=["slow-cross-attention"])


def test_videos_without_a_placeholder_or_with_two_are_refused(hybrid, pixels):
    model = hybrid()
    with pytest.raises(InputError, match="0 placeholders of id 200 for 2 videos"):
        model(torch.tensor([[5, 6, 7]]), pixel_values_videos=pixels)
    with pytest.raises(InputError, match="row 0 has 2 videos and images; a path with tokens beside the sequence"):
        model(torch.tensor([[5, 200, 6, 200]]), pixel_values_videos=pixels)


def test_a_row_with_nothing_to_attend_to_is_refused(hybrid, pixels):
    model = hybrid()
    sequence = sequences(model, pixels)[200]
    empty = torch.zeros_like(sequence.cross_attention_mask)
    with pytest.raises(InputError, match="row 0 has visual tokens, and no slow token to attend to: its mask is empty"):
        generated(model, changed(sequence, cross_attention_mask=empty))
    without = changed(sequence, cross_attention_states=None, cross_attention_mask=None, cross_attention_frame=None)
    with pytest.raises(InputError, match="row 0 has visual tokens, and no slow token"):
        generated(model, without)


def test_tokens_beside_a_sequence_need_their_mask_and_shape():
    sequence = {"embeddings": torch.zeros(1, 2, 4), "mask": torch.ones(1, 2).bool(), "frame": torch.zeros(1, 2).long(),
                "blocks": (("fast", 2),)}  # fmt: skip
    with pytest.raises(ValueError, match=r"cross_attention_mask must be \(1, 3\), not None"):
        VisualSequence(**sequence, cross_attention_states=torch.zeros(1, 3, 4))
    with pytest.raises(ValueError, match=r"cross_attention_states must be \(1 S 4\), not \(1, 3, 5\)"):
        VisualSequence(**sequence, cross_attention_states=torch.zeros(1, 3, 5))
    with pytest.raises(ValueError, match="without them"):
        VisualSequence(**sequence, cross_attention_mask=torch.ones(1, 3).bool())
