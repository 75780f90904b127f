"""DINOv2's tower by timm agrees with transformers', under either's names and with resampled positions."""

import pytest
import torch
from nearness import assert_near
from transformers import Dinov2Config, Dinov2Model

from mmllm.encoders.dinov2 import DinoV2Config, DinoV2Encoder, load_dinov2_tower, resampled_positions, to_timm
from mmllm.errors import CheckpointError, ConfigError

SHAPE = {"image_size": 24, "patch_size": 4, "width": 32, "layers": 3, "heads": 4}


def theirs(gated, image_size=24):
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, image_size=image_size, patch_size=4, mlp_ratio=4,
        use_swiglu_ffn=gated, layerscale_value=1.0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Dinov2Model._from_config(config, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(0)
    for weight in model.state_dict().values():
        weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2 + (weight.ndim == 1))
    return model


def ours(gated, **fields):
    mlp_width = 88 if gated else 128
    return DinoV2Encoder(DinoV2Config(**{**SHAPE, "gated": gated, "mlp_width": mlp_width, **fields})).eval()


@pytest.fixture
def pixels():
    return torch.randn(1, 3, 3, 24, 24, generator=torch.Generator().manual_seed(1))


def run(model, pixels):
    with torch.no_grad():
        return model(pixels[0], output_hidden_states=True, output_attentions=True)


@pytest.mark.parametrize("gated", [True, False])
def test_features_and_scores(pixels, gated):
    model, encoder = theirs(gated), ours(gated)
    load_dinov2_tower(encoder, {f"vision_tower.{name}": value for name, value in model.state_dict().items()})
    out = run(model, pixels)
    names = ["cls_attention", "mean_attention", "cls_attention@0"]
    tokens = encoder(pixels, scores=names)
    assert_near(tokens.features[0], out.last_hidden_state[:, 1:])
    weights = [out.attentions[2].mean(1), out.attentions[2].mean(1), out.attentions[0].mean(1)]
    expected = [weights[0][:, 0, 1:], weights[1].mean(1)[:, 1:], weights[2][:, 0, 1:]]
    for name, score in zip(names, expected, strict=True):
        assert_near(tokens.scores[name][0], score)


def test_an_earlier_layer_without_norm(pixels):
    model, encoder = theirs(True), ours(True, select_layer=-2, final_norm=False)
    load_dinov2_tower(encoder, model.state_dict())
    expected = run(model, pixels).hidden_states[-2][:, 1:]
    assert_near(encoder(pixels).features[0], expected)


def test_positions_of_another_size(pixels):
    model, encoder = theirs(True, image_size=40), ours(True)
    load_dinov2_tower(encoder, model.state_dict())
    expected = run(model, pixels).last_hidden_state[:, 1:]
    assert_near(encoder(pixels).features[0], expected)
    assert resampled_positions(torch.zeros(1, 1370, 8), 27).shape == (1, 730, 8)


def test_names_of_the_published_file():
    state = theirs(True).state_dict()
    published = {}
    for name, value in state.items():
        name = name.replace("attention.q_proj", "attention.attention.query").replace("mlp.down_proj", "mlp.weights_out")
        name = name.replace("attention.k_proj", "attention.attention.key").replace(
            "attention.o_proj", "attention.output.dense"
        )
        name = name.replace("attention.v_proj", "attention.attention.value")
        if "gate_proj" in name:
            branches = [value, state[name.replace("gate_proj", "up_proj")]]
            published[name.replace("gate_proj", "weights_in")] = torch.cat(branches)
        elif "up_proj" not in name:
            published[name] = value
    new, old = to_timm(state), to_timm(published)
    assert set(new) == set(old) == set(ours(True).tower.state_dict())
    assert all(torch.equal(new[name], old[name]) for name in new)


def test_timm_names_and_resampled_grid(pixels):
    first, second = ours(True), ours(True, output_grid=4)
    load_dinov2_tower(second, {f"trunk.{k}": v for k, v in first.tower.state_dict().items()})
    tokens = second(pixels, scores=["cls_attention"])
    assert (tokens.grid, tokens.shape) == ((4, 4), (1, 3, 16, 32))
    assert tokens.scores["cls_attention"].shape == (1, 3, 16)


def test_sizes_of_the_published_tower():
    with torch.device("meta"):
        encoder = DinoV2Encoder(DinoV2Config(image_size=518))
    assert encoder.grid == (37, 37)
    assert sum(weight.numel() for weight in encoder.parameters()) == pytest.approx(1136e6, rel=2e-3)


def test_bad_input():
    state = theirs(True).state_dict()
    with pytest.raises(CheckpointError, match="made of q, k, v; given: k, q"):
        to_timm({name: value for name, value in state.items() if "v_proj" not in name})
    with pytest.raises(CheckpointError, match="unexpected"):
        load_dinov2_tower(ours(True), {**state, "encoder.layer.0.other": torch.zeros(1)})
    with pytest.raises(ConfigError, match="multiple of patch_size"):
        DinoV2Config(image_size=384)
