"""The same CLIP weights in three libraries: names map onto each other exactly, and outputs agree."""

import pytest
import timm
import torch
from nearness import assert_near
from open_clip.transformer import QuickGELU, VisionTransformer

from mmllm.encoders.clip import ClipConfig, ClipEncoder, load_clip_tower
from mmllm.encoders.clip_names import from_transformers, layout_of, to_transformers
from mmllm.encoders.open_clip_models import open_clip_config
from mmllm.errors import CheckpointError, ConfigError

TINY = ClipConfig(image_size=24, patch_size=4, width=32, layers=3, heads=4, mlp_width=64)


def randomised(module):
    generator = torch.Generator().manual_seed(0)
    for weight in module.state_dict().values():
        weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2 + (weight.ndim == 1))
    return module.eval()


def open_clip_tower():
    tower = VisionTransformer(
        image_size=24, patch_size=4, width=32, layers=3, heads=4, mlp_ratio=2.0, output_dim=16, act_layer=QuickGELU
    )
    return randomised(tower)


def timm_tower():
    tower = timm.create_model(
        "vit_large_patch14_clip_quickgelu_336", img_size=24, patch_size=4, embed_dim=32, depth=3, num_heads=4,
        mlp_ratio=2.0, num_classes=16,
    )  # fmt: skip
    randomised(tower).head.bias.data.zero_()
    return tower


@pytest.fixture
def pixels():
    return torch.randn(2, 1, 3, 24, 24, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("make", "layout"), [(open_clip_tower, "open_clip"), (timm_tower, "timm")])
def test_names_are_a_bijection(make, layout):
    state = make().state_dict()
    assert layout_of({f"visual.{name}": value for name, value in state.items()}) == layout
    ours = to_transformers(state, layout)
    encoder_names = set(ClipEncoder(TINY).tower.state_dict())
    assert set(ours) == encoder_names | {"visual_projection.weight"}
    back = from_transformers(ours, layout)
    assert set(back) == set(state)
    for name, value in state.items():
        assert torch.equal(back[name], value)
    other = "timm" if layout == "open_clip" else "open_clip"
    round_trip = to_transformers(from_transformers(ours, other), other)
    assert all(torch.equal(round_trip[name], value) for name, value in ours.items())


@pytest.mark.parametrize("select_layer", [-2, -1, 1])
def test_open_clip_features(pixels, select_layer):
    theirs = open_clip_tower()
    encoder = ClipEncoder(ClipConfig(**{**vars(TINY), "select_layer": select_layer})).eval()
    load_clip_tower(encoder, {f"visual.{name}": value for name, value in theirs.state_dict().items()})
    index = encoder.config.blocks_run - 1
    with torch.no_grad():
        expected = theirs.forward_intermediates(
            pixels[:, 0], indices=[index], stop_early=True, intermediates_only=True, output_fmt="NLC"
        )["image_intermediates"][0]
    assert_near(encoder(pixels).features[:, 0], expected)


@pytest.mark.parametrize("select_layer", [-2, -1])
def test_timm_features(pixels, select_layer):
    theirs = timm_tower()
    encoder = ClipEncoder(ClipConfig(**{**vars(TINY), "select_layer": select_layer})).eval()
    load_clip_tower(encoder, theirs.state_dict())
    with torch.no_grad():
        expected = theirs.forward_intermediates(
            pixels[:, 0], indices=[select_layer], norm=False, output_fmt="NLC", intermediates_only=True
        )[0]
    assert_near(encoder(pixels).features[:, 0], expected)


def relative(got, expected):
    return ((got - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize(("make", "layout"), [(open_clip_tower, "open_clip"), (timm_tower, "timm")])
def test_the_three_libraries_agree_to_rounding(pixels, make, layout):
    theirs = make()
    encoder = ClipEncoder(TINY).eval()
    load_clip_tower(encoder, theirs.state_dict())
    options = {"indices": [-2], "intermediates_only": True, "output_fmt": "NLC"}
    with torch.no_grad():
        if layout == "timm":
            expected = theirs.forward_intermediates(pixels[:, 0], norm=False, **options)[0]
        else:
            expected = theirs.forward_intermediates(pixels[:, 0], stop_early=True, **options)["image_intermediates"][0]
        original = encoder.tower(pixels[:, 0], output_hidden_states=True).hidden_states[-2][:, 1:]
    features = encoder(pixels).features[:, 0]
    assert relative(features, expected) <= 1e-5
    assert relative(features, original) <= 1e-5


def test_the_wrong_activation_shows(pixels):
    theirs = open_clip_tower()
    outputs = []
    for activation in ("quick_gelu", "gelu"):
        encoder = ClipEncoder(ClipConfig(**{**vars(TINY), "activation": activation})).eval()
        load_clip_tower(encoder, theirs.state_dict())
        outputs.append(encoder(pixels).features)
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3


def test_configs_of_open_clip():
    assert open_clip_config("ViT-L-14-336", "openai") == ClipConfig()
    assert open_clip_config("ViT-L-14-336-quickgelu", "openai", select_layer=-1) == ClipConfig(select_layer=-1)
    assert open_clip_config("ViT-L-14-336").activation == "gelu"
    laion = open_clip_config("ViT-L-14", "laion2b_s32b_b82k")
    assert (laion.activation, laion.mean, laion.image_size) == ("gelu", (0.5, 0.5, 0.5), 224)


@pytest.mark.parametrize(
    ("model", "tag", "message"),
    [
        ("ViT-X", None, "no model"),
        ("ViT-L-14", "nonsense", "it has .*openai"),
        ("RN50", None, "plain transformer"),
        ("convnext_xxlarge", None, "plain transformer"),
        ("ViT-L-14-quickgelu", "laion2b_s32b_b82k", "declare GELU"),
    ],
)
def test_unfit_models_of_open_clip(model, tag, message):
    with pytest.raises(ConfigError, match=message):
        open_clip_config(model, tag)


def test_foreign_tensors_are_refused():
    state = open_clip_tower().state_dict()
    with pytest.raises(CheckpointError, match=r"'attnpool.x' is no tensor"):
        to_transformers({**state, "attnpool.x": torch.zeros(1)}, "open_clip")
    with pytest.raises(CheckpointError, match=r"'x.y' is no tensor"):
        from_transformers({"x.y": torch.zeros(1)}, "timm")
    with pytest.raises(CheckpointError, match="no CLIP vision tower among 1"):
        layout_of({"lm_head.weight": torch.zeros(1)})
    biased = {**timm_tower().state_dict(), "head.bias": torch.ones(16)}
    with pytest.raises(CheckpointError, match=r"head.bias"):
        to_transformers(biased, "timm")


def open_clip_attention(tower, frames, layer):
    """Rows of the attention of one block, heads averaged, as open_clip's own module gives them when asked."""
    block, rows = tower.transformer.resblocks[layer], []
    original = block.attn.forward

    def with_weights(*args, **kwargs):
        out, weights = original(*args, **{**kwargs, "need_weights": True})
        rows.append(weights)
        return out, weights

    block.attn.forward = with_weights
    with torch.no_grad():
        tower(frames)
    return rows[0]


def timm_attention(tower, frames, layer):
    """The same by timm's eager attention; its dropout sees the weights."""
    attention, rows = tower.blocks[layer].attn, []
    attention.fused_attn = False
    attention.attn_drop.register_forward_hook(lambda module, args, out: rows.append(out.mean(1)))
    with torch.no_grad():
        tower(frames)
    return rows[0]


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize(("make", "attention"), [(open_clip_tower, open_clip_attention), (timm_tower, timm_attention)])
def test_the_cheap_row_is_that_of_their_eager_attention(pixels, make, attention, layer):
    theirs = make()
    encoder = ClipEncoder(TINY).eval()
    load_clip_tower(encoder, theirs.state_dict())
    weights = attention(theirs, pixels[:, 0], layer)
    assert weights.shape == (2, 37, 37)
    scores = encoder(pixels, scores=[f"cls_attention@{layer}", f"mean_attention@{layer}"]).scores
    assert_near(scores[f"cls_attention@{layer}"][:, 0], weights[:, 0, 1:])
    assert_near(scores[f"mean_attention@{layer}"][:, 0], weights.mean(1)[:, 1:])
