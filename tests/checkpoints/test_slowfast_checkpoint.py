"""Slow-Fast's released layout: there and back, without cross-attention, and what is refused."""

import json

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config, Qwen2ForCausalLM

from mmllm import cli
from mmllm.checkpoints import slowfast
from mmllm.checkpoints.loading import family_of
from mmllm.errors import CheckpointError
from mmllm.inference.answering import VideoQA

TOWER = "model.vision_tower.vision_tower."
CROSS = "model.layers.{}.self_attn.cross_attn_"


def config_file(tiny, **fields):
    """A `config.json` as the authors' code writes it, of a small model."""
    return {
        **tiny.llm("qwen2", num_hidden_layers=4, rope_theta=1000000.0, tie_word_embeddings=False),
        "model_type": "llava_qwen_slow_fast",
        "architectures": ["LlavaQwenSlowFastForCausalLM"],
        "cross_attn_every_n_layers": 2,
        "cross_attn_min_layer_depth": 0,
        "cross_attn_max_layer_depth": 4,
        "cross_attn_implementation": "text-only-vanilla-flashattn",
        "cross_attn_gating_type": "whole-dynamic-tanh-warmup",
        "fast_token_spatial_stride": 1,
        "fast_token_temporal_stride": 2,
        "fast_token_temporal_sampling_stride": 1,
        "min_fast_frames": 4,
        "tile_image_input": False,
        "mm_video_pooling_stride": 2,
        "mm_vision_tower": "convnext-128",
        "mm_hidden_size": 32,
        "mm_projector_type": "mlp2x_gelu",
        "mm_patch_merge_type": "flat",
        "mm_vision_select_layer": -2,
        "mm_use_im_start_end": False,
        "tokenizer_padding_side": "right",
        "tokenizer_model_max_length": 4096,
        **fields,
    }


def tensors(tiny, *, cross=True, head=False, scale="weight"):
    """A state dict under the authors' names."""
    torch.manual_seed(0)
    fields = {name: value for name, value in config_file(tiny).items() if name in Qwen2Config().to_dict()}
    fields.pop("model_type")
    state = dict(Qwen2ForCausalLM(Qwen2Config(**fields)).state_dict())
    trunk = timm.create_model("convnext_xxlarge", depths=(1, 1, 2, 1), dims=(8, 16, 24, 32), num_classes=5)
    for name, value in trunk.state_dict().items():
        if head or not name.startswith("head."):
            state[TOWER + name.replace(".gamma", f".{scale}")] = torch.randn_like(value) * 0.3
    for number, shape in ((0, (32, 32)), (2, (32, 32))):
        state[f"model.mm_projector.{number}.weight"] = torch.randn(shape)
        state[f"model.mm_projector.{number}.bias"] = torch.randn(32)
    if cross:
        for layer in (0, 2):
            prefix = CROSS.format(layer)
            state[f"{prefix}kv_proj.weight"] = torch.randn(32, 32) * 0.3
            state[f"{prefix}kv_proj.bias"] = torch.randn(32)
            state[f"{prefix}gate_proj.0.weight"] = torch.randn(1, 32)
            state[f"{prefix}gate_proj.0.bias"] = torch.randn(1)
            state[f"{prefix}warm_up_gate"] = torch.tensor([0.8])
    return {name: value.contiguous() for name, value in state.items()}


@pytest.fixture
def save(tiny, tmp_path):
    """Writes a published folder."""

    def write(state, folder="theirs", **fields):
        place = tmp_path / folder
        place.mkdir()
        (place / "config.json").write_text(json.dumps(config_file(tiny, **fields)))
        save_file(state, place / "model.safetensors")
        tiny.tokenizer().save_pretrained(place)
        return place

    return write


def same(one, other):
    assert set(one) == set(other)
    assert all(torch.equal(one[name], other[name]) for name in one)


def ids(model):
    return torch.tensor([[1, 9, model.config.video_token_id, 11, 12]])


@pytest.mark.parametrize("scale", ["weight", "gamma"])
def test_there_and_back(tiny, save, short_clip, scale, sight):
    state = tensors(tiny, scale=scale)
    qa = VideoQA.from_pretrained(save(state))
    model = qa.model
    assert model.config.origin["family"] == "slowfast"
    same(slowfast.to_upstream(model), state)
    stage = model.decoder_stages[0]
    assert list(stage.layers) == ["0", "2"]
    assert torch.equal(stage.layers["2"].kv_proj.weight, state[CROSS.format(2) + "kv_proj.weight"])
    assert torch.equal(stage.layers["0"].gate.bias, state[CROSS.format(0) + "gate_proj.0.bias"])
    assert model.encoder.config.dims == (8, 16, 24, 32)
    assert torch.equal(model.encoder.tower.stages[2].blocks[1].gamma, state[f"{TOWER}stages.2.blocks.1.{scale}"])
    pixels = torch.randn(1, 8, 3, 128, 128)
    assert sight(model, {"input_ids": ids(model), "pixel_values_videos": pixels}) > 1e-4
    # 4 fast frames of 4 tokens from 8 frames, chosen by the rule of the benchmarks
    assert (qa.processor.num_frames, qa.processor.frame_rule.rule, qa.processor.frame_rule.fps) == (8, "slow-fast", 2.0)
    encoded = qa.encode_video(short_clip)
    assert encoded.token_counts["fast"] == 16
    assert encoded.sequences[model.config.video_token_id].cross_attention_states.shape[1] == 32
    assert qa.ask(encoded, "When?", max_new_tokens=2).text is not None
    prompt = qa.processor.decode_text(qa.prompt("When?", 8.0).input_ids)
    assert prompt.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user")


def test_a_head_of_the_tower_is_not_read(tiny):
    whole = tensors(tiny, head=True)
    assert any(name.startswith(f"{TOWER}head.") for name in whole)
    model = slowfast.from_upstream(whole, config_file(tiny))
    same(slowfast.to_upstream(model), {n: v for n, v in whole.items() if not n.startswith(f"{TOWER}head.")})


def test_converted_there_and_back_by_command(tiny, save, tmp_path, short_clip, capsys):
    state = tensors(tiny)
    theirs, ours, back = save(state), tmp_path / "ours", tmp_path / "back"

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert ended.value.code == 0, err
        return out

    def answer(folder, *more):
        return json.loads(run("ask", short_clip, "When?", "--model", folder, "--max-new-tokens", 6, "--json", *more))

    first = answer(theirs)["raw"]
    run("convert", theirs, ours)
    assert answer(ours)["raw"] == first
    released = "slow-cross-attention:every=2,max_layer=4,upstream_decode=true"
    assert answer(ours, "--decoder-stage", released)["raw"] == answer(theirs, "--decoder-stage", released)["raw"]
    run("convert", ours, back, "--to", "slowfast")
    same(load_file(back / "model.safetensors"), state)


def test_without_cross_attention_it_is_its_base_model(tiny, save, caplog):
    state = tensors(tiny, cross=False)
    qa = VideoQA.from_pretrained(save(state))
    assert "no cross_attn_* tensors" in caplog.text
    assert "closed gates" in qa.note
    plain = slowfast.from_upstream(state, {k: v for k, v in config_file(tiny).items() if "every_n" not in k})
    assert plain.llm_stages == []
    inputs = {"pixel_values_videos": torch.randn(1, 8, 3, 128, 128)}
    with torch.no_grad():
        assert torch.equal(qa.model(ids(qa.model), **inputs).logits, plain(ids(plain), **inputs).logits)
    layer = qa.model.decoder_stages[0].layers["2"]
    assert float(layer.warm_up) == 0.0
    own = qa.model.language_model.base_model.layers[2].self_attn
    both = torch.stack([own.k_proj.weight, own.v_proj.weight]).unflatten(1, (2, 8))  # two, heads, 8
    assert torch.equal(layer.kv_proj.weight, both.transpose(0, 1).flatten(0, 2))
    back = slowfast.to_upstream(qa.model)
    same({name: value for name, value in back.items() if "cross_attn" not in name}, state)


@pytest.mark.parametrize(
    ("implementation", "gating", "expected"),
    [
        ("text-only-vanilla", "whole-dynamic-tanh-warmup", ("text", True, True)),
        ("text-only-vanilla-flashattn-masksystem", "whole-dynamic-warmup", ("text_after_visual", False, True)),
        ("vanilla", "whole-dynamic-tanh", ("all", True, False)),
    ],
)
def test_variants(tiny, implementation, gating, expected):
    fields = {"cross_attn_implementation": implementation, "cross_attn_gating_type": gating}
    stage = slowfast.describe(config_file(tiny, **fields)).stage("decoder_stages")[0]
    assert (stage.queries, stage.gate_tanh, stage.gate_warm_up) == expected


def test_names_and_sizes_of_the_released_model():
    upstream = {
        "model_type": "llava_qwen_slow_fast", "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944,
        "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "rope_theta": 1000000.0,
        "tie_word_embeddings": False, "cross_attn_every_n_layers": 8, "cross_attn_min_layer_depth": 0,
        "cross_attn_max_layer_depth": 28, "cross_attn_implementation": "text-only-vanilla-flashattn",
        "cross_attn_gating_type": "whole-dynamic-tanh-warmup", "fast_token_temporal_stride": 6,
        "mm_vision_tower": "convnext-576", "mm_hidden_size": 3072, "mm_projector_type": "mlp2x_gelu",
    }  # fmt: skip
    assert family_of(upstream).NAME == "slowfast"
    config = slowfast.describe(upstream)
    assert config.text_config.rope_parameters["rope_theta"] == 1000000.0
    from mmllm.model import MmllmForConditionalGeneration

    with torch.device("meta"):
        state = slowfast.to_upstream(MmllmForConditionalGeneration(config))
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    for layer in (0, 8, 16, 24):
        prefix = CROSS.format(layer)
        assert shapes[f"{prefix}kv_proj.weight"] == (1024, 3584)
        assert shapes[f"{prefix}kv_proj.bias"] == (1024,)
        assert shapes[f"{prefix}gate_proj.0.weight"] == (1, 3584)
        assert shapes[f"{prefix}gate_proj.0.bias"] == shapes[f"{prefix}warm_up_gate"] == (1,)
    cross = [value.numel() for name, value in state.items() if ".cross_attn_" in name]
    assert (len(cross), sum(cross)) == (20, 4 * (3584 * 1024 + 1024 + 3584 + 2))
    assert shapes["model.mm_projector.0.weight"] == (3584, 3072)
    assert shapes[f"{TOWER}stages.3.blocks.2.weight"] == (3072,)
    loaded = slowfast.from_upstream(state, upstream)
    assert loaded.encoder.grid == (18, 18)
    assert {name: value.shape for name, value in slowfast.to_upstream(loaded).items()} == {
        name: value.shape for name, value in state.items()
    }


def test_what_is_refused(tiny):
    with pytest.raises(CheckpointError, match=r"cross_attn_gating_type = 'channel-wise-dynamic-sigmoid'; known: whole"):
        slowfast.describe(config_file(tiny, cross_attn_gating_type="channel-wise-dynamic-sigmoid"))
    with pytest.raises(CheckpointError, match=r"cross_attn_implementation = 'sdpa'; known: text-only-vanilla, "):
        slowfast.describe(config_file(tiny, cross_attn_implementation="sdpa"))
    with pytest.raises(CheckpointError, match="mm_patch_merge_type = 'spatial', but only 'flat'"):
        slowfast.describe(config_file(tiny, mm_patch_merge_type="spatial"))
    with pytest.raises(CheckpointError, match="mm_hidden_size = 48, but the vision tower is 32 wide"):
        slowfast.from_upstream(tensors(tiny), config_file(tiny, mm_hidden_size=48))
    state = tensors(tiny)
    lacking = {name: value for name, value in state.items() if "layers.2.self_attn.cross_attn_kv" not in name}
    with pytest.raises(CheckpointError, match=r"missing: model\.layers\.2\.self_attn\.cross_attn_kv_proj"):
        slowfast.from_upstream(lacking, config_file(tiny))
    more = {CROSS.format(1) + "gate_proj.0.bias": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"unexpected: model\.layers\.1\.self_attn\.cross_attn_gate"):
        slowfast.from_upstream(state | more, config_file(tiny))
    with pytest.raises(CheckpointError, match=r"missing .*stages\.3\.blocks\.0\.conv_dw"):
        slowfast.from_upstream({n: v for n, v in state.items() if ".stages.3." not in n}, config_file(tiny))
    with pytest.raises(CheckpointError, match="without a warm-up factor the gates cannot be closed"):
        slowfast.from_upstream(tensors(tiny, cross=False), config_file(tiny, cross_attn_gating_type="whole-dynamic"))
