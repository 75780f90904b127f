"""SigLIP's tower and scores agree with transformers and timm, under either's names."""

import pytest
import timm
import torch
from nearness import assert_near
from transformers import SiglipVisionModel

from mmllm import registry
from mmllm.encoders.siglip import SiglipConfig, SiglipEncoder, load_siglip_tower, siglip_config
from mmllm.encoders.siglip_names import from_transformers, layout_of, to_transformers
from mmllm.errors import CheckpointError, ConfigError, InputError
from mmllm.modeling.tower import regridded

TINY = SiglipConfig(image_size=26, patch_size=4, width=32, layers=3, heads=4, mlp_width=48)


def randomised(module):
    generator = torch.Generator().manual_seed(0)
    for weight in module.state_dict().values():
        weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2 + (weight.ndim == 1))
    return module.eval()


@pytest.fixture
def encoder():
    return randomised(SiglipEncoder(TINY))


@pytest.fixture
def pixels():
    return torch.randn(2, 2, 3, 26, 26, generator=torch.Generator().manual_seed(1))


def eager(encoder, pixels):
    tower = SiglipVisionModel._from_config(encoder.tower.config, attn_implementation="eager")
    tower.load_state_dict(encoder.tower.state_dict())
    with torch.no_grad():
        return tower.eval()(pixels.flatten(0, 1), output_hidden_states=True, output_attentions=True)


@pytest.mark.parametrize("select_layer", [-1, -2, 1])
def test_features_are_the_hidden_state(pixels, select_layer):
    encoder = randomised(SiglipEncoder(SiglipConfig(**{**vars(TINY), "select_layer": select_layer})))
    expected = eager(encoder, pixels).hidden_states[select_layer]
    assert_near(encoder(pixels).features.flatten(0, 1), expected)


def test_mean_attention(encoder, pixels):
    attentions = eager(encoder, pixels).attentions
    scores = encoder(pixels, scores=["mean_attention", "mean_attention@0", "mean_attention@-2"]).scores
    for name, layer in (("mean_attention", 2), ("mean_attention@0", 0), ("mean_attention@-2", 1)):
        expected = attentions[layer].mean((1, 2))
        assert_near(scores[name].flatten(0, 1), expected)
        assert_near(scores[name].sum(-1), torch.ones(2, 2))


def test_probe_attention(encoder, pixels):
    head, normed = encoder.tower.head, eager(encoder, pixels).last_hidden_state
    with torch.no_grad():
        _, expected = head.attention(head.probe.expand(4, 1, 32), normed, normed, need_weights=True)
    score = encoder(pixels, scores=["probe_attention"]).scores["probe_attention"]
    assert_near(score.flatten(0, 1), expected[:, 0])


def test_early_layer_with_probe(pixels):
    encoder = randomised(SiglipEncoder(SiglipConfig(**{**vars(TINY), "select_layer": 1})))
    assert torch.equal(encoder(pixels, scores=["probe_attention"]).features, encoder(pixels).features)


def test_class_attention_is_refused(encoder, pixels):
    with pytest.raises(InputError, match=r"no class token; it can give keys, mean_attention, probe_attention"):
        encoder(pixels, scores=["cls_attention"])
    without = SiglipEncoder(SiglipConfig(**{**vars(TINY), "pooling_head": False}))
    with pytest.raises(InputError, match="no attention pooling head"):
        without(pixels, scores=["probe_attention"])


def test_resampled_grid(pixels):
    encoder = randomised(SiglipEncoder(SiglipConfig(**{**vars(TINY), "output_grid": 4})))
    plain = randomised(SiglipEncoder(TINY))(pixels, scores=["mean_attention"])
    tokens = encoder(pixels, scores=["mean_attention"])
    assert tokens.grid == (4, 4)
    image = plain.features.unflatten(2, (6, 6)).flatten(0, 1).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(image, size=(4, 4), mode="bilinear", align_corners=False)
    assert_near(tokens.features.flatten(0, 1), expected.flatten(2).mT)
    assert tokens.scores["mean_attention"].shape == (2, 2, 16)


def test_regridding_keeps_a_plane():
    y, x = torch.meshgrid(torch.arange(27.0), torch.arange(27.0), indexing="ij")
    plane = (2 * y + 3 * x).reshape(1, 729, 1)
    out = regridded(plane, (27, 27), (24, 24)).view(24, 24)
    at = (torch.arange(24) + 0.5) * 27 / 24 - 0.5
    assert_near(out, 2 * at[:, None] + 3 * at[None, :])
    assert regridded(plane, (27, 27), (27, 27)) is plane


def timm_tower():
    tower = timm.create_model(
        "vit_so400m_patch14_siglip_384", img_size=26, patch_size=4, embed_dim=32, depth=3, num_heads=4, mlp_ratio=1.5,
        num_classes=0, act_layer="gelu_tanh",
    )  # fmt: skip
    return randomised(tower)


def test_names_of_timm(encoder):
    state = timm_tower().state_dict()
    ours = to_transformers(state, "timm")
    assert set(ours) == set(encoder.tower.state_dict())
    back = from_transformers(ours, "timm")
    assert set(back) == set(state)
    assert all(torch.equal(back[name], value) for name, value in state.items())


@pytest.mark.parametrize("prefix", ["", "visual.trunk."])
def test_timm_features(encoder, pixels, prefix):
    theirs = timm_tower()
    load_siglip_tower(encoder, {f"{prefix}{name}": value for name, value in theirs.state_dict().items()})
    with torch.no_grad():
        expected = theirs.forward_intermediates(
            pixels.flatten(0, 1), indices=[-1], norm=False, output_fmt="NLC", intermediates_only=True
        )[0]
    assert_near(encoder(pixels).features.flatten(0, 1), expected)


@pytest.mark.parametrize("prefix", ["", "vision_model.", "model.vision_tower_aux_list.0.vision_tower.vision_model."])
def test_upstream_prefixes(encoder, pixels, prefix):
    state = {f"{prefix}{name}": value for name, value in encoder.tower.state_dict().items()}
    without = SiglipEncoder(SiglipConfig(**{**vars(TINY), "pooling_head": False})).eval()
    load_siglip_tower(without, state)
    torch.testing.assert_close(without(pixels).features, encoder(pixels).features)


def test_bad_weights(encoder):
    with pytest.raises(CheckpointError, match="no SigLIP vision tower"):
        layout_of({"lm_head.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"'cls_token' is no tensor"):
        to_transformers({"cls_token": torch.zeros(1)}, "timm")
    with pytest.raises(CheckpointError, match=r"'x.y' is no tensor"):
        from_transformers({"x.y": torch.zeros(1)}, "timm")
    with pytest.raises(CheckpointError, match="missing"):
        load_siglip_tower(encoder, {k: v for k, v in encoder.tower.state_dict().items() if "head" not in k})


def test_configs(encoder):
    assert siglip_config(encoder.tower.config.to_dict()) == TINY
    with pytest.raises(ConfigError, match="gelu_pytorch_tanh"):
        siglip_config({"hidden_act": "gelu"})
    for wrong in ({"heads": 5}, {"select_layer": 0}, {"output_grid": 0}, {"chunk": 0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            SiglipConfig(**{**vars(TINY), **wrong})
    assert registry.config_of("encoder", "siglip").frames.fit == "squash"
