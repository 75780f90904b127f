"""The encoder `timm` gives what timm's own forward gives, for maps and tokens of any layout, and its attention."""

import numpy as np
import pytest
import timm
import torch
from nearness import assert_near
from PIL import Image

from mmllm import registry
from mmllm.encoders.timm_config import TimmConfig
from mmllm.encoders.timm_maps import on_grid
from mmllm.errors import ConfigError, InputError
from mmllm.model import MmllmForConditionalGeneration

BACKBONES = {
    "tf_efficientnet_lite0": 64,
    "resnet18": 64,
    "convnext_atto": 64,
    "vit_tiny_patch16_224": 64,
    "vit_small_patch14_reg4_dinov2": 56,
    "swin_tiny_patch4_window7_224": 224,
}
"""Name -> side of the input in pixels."""
TRANSFORMERS = ("vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2")


def built(name, **settings):
    """An encoder whose batch norms have seen something."""
    torch.manual_seed(0)
    encoder = registry.build("encoder", {"name": "timm", "model": name, "image_size": BACKBONES[name], **settings})
    for key, value in encoder.named_buffers():
        if "running" in key:
            value.copy_(torch.rand_like(value) * 0.2 + ("var" in key))
    return encoder.eval()


def theirs(encoder, **options):
    """timm's own network with the same weights."""
    config = encoder.config
    size = {"img_size": config.image_size} if config.has_fixed_size else {}
    network = timm.create_model(config.model, **size, **{"num_classes": 0, **options}).eval()
    network.load_state_dict(encoder.tower.state_dict())
    return network


def frames(encoder, count=3):
    side = encoder.config.image_size
    return torch.randn(1, count, 3, side, side, generator=torch.Generator().manual_seed(1))


def rows(network, output):
    """F N C of what `forward_features` gives, class and register tokens left out."""
    if output.ndim == 3:
        return output[:, network.num_prefix_tokens :]
    return output.flatten(1, 2) if output.shape[-1] == network.num_features else output.flatten(2).mT


@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_features_are_those_of_forward_features(name):
    encoder = built(name, chunk=2)
    pixels = frames(encoder)
    network = theirs(encoder)
    tokens = encoder(pixels)
    expected = rows(network, network.forward_features(pixels[0]))
    assert tokens.shape == (1, 3, encoder.tokens_per_frame, encoder.width)
    assert encoder.grid[0] * encoder.grid[1] == encoder.tokens_per_frame
    assert_near(tokens.features[0], expected)


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("stage", [-1, -2])
@torch.no_grad()
def test_a_stage_is_that_of_forward_intermediates(name, stage):
    encoder = built(name, stage=[stage])
    pixels = frames(encoder)
    expected = theirs(encoder).forward_intermediates(pixels[0], indices=[stage], intermediates_only=True)[0]
    tokens = encoder(pixels)
    assert tokens.grid == expected.shape[-2:]
    assert_near(tokens.features[0], expected.flatten(2).mT)


@torch.no_grad()
def test_a_map_of_several_stages_is_on_the_grid_of_the_deepest():
    encoder = built("resnet18", stage=[3, 2])  # they come in the order of depth
    pixels = frames(encoder)
    fine, coarse = theirs(encoder).forward_intermediates(pixels[0], indices=[2, 3], intermediates_only=True)
    assert (encoder.grid, encoder.width) == ((4, 4), 128 + 256)
    means = fine.unflatten(3, (4, 2)).unflatten(2, (4, 2)).mean((3, 5))
    assert_near(encoder(pixels).features[0], torch.cat([means, coarse], 1).flatten(2).mT)


@torch.no_grad()
def test_the_output_grid_holds_for_features_and_scores():
    whole, small = (built("vit_tiny_patch16_224", output_grid=grid) for grid in (None, 2))
    small.load_state_dict(whole.state_dict())
    pixels, names = frames(whole), ["cls_attention", "keys"]
    tokens, fewer = whole(pixels, scores=names), small(pixels, scores=names)
    assert (whole.grid, small.grid, small.tokens_per_frame) == ((4, 4), (2, 2), 4)
    for full, part in ((tokens.features, fewer.features), (tokens.scores["keys"], fewer.scores["keys"])):
        assert_near(part[0], full[0].unflatten(1, (2, 2, 2, 2)).mean((2, 4)).flatten(1, 2))
    attention = tokens.scores["cls_attention"][0].unflatten(1, (2, 2, 2, 2)).mean((2, 4)).flatten(1)
    assert_near(fewer.scores["cls_attention"][0], attention)


def test_a_finer_grid_is_bilinear():
    given = torch.rand(2, 3, 2, 2)
    expected = torch.nn.functional.interpolate(given, size=(5, 5), mode="bilinear", align_corners=False)
    assert_near(on_grid(given, (5, 5)), expected)


def eager_attention(network, pixels, layer):
    """F Q K, mean over heads: the weights that timm's eager attention multiplies the values with."""
    attention, weights = network.blocks[layer].attn, []
    attention.fused_attn = False
    attention.attn_drop.register_forward_hook(lambda module, args, out: weights.append(out.mean(1)))
    network(pixels)
    return weights[0]


@pytest.mark.parametrize("name", TRANSFORMERS)
@pytest.mark.parametrize("layer", [0, 5, -1])
@torch.no_grad()
def test_scores_are_the_attention_of_timm(name, layer):
    encoder = built(name)
    pixels, prefix = frames(encoder), encoder.tower.num_prefix_tokens
    weights = eager_attention(theirs(encoder), pixels[0], layer)
    scores = encoder(pixels, scores=[f"cls_attention@{layer}", f"mean_attention@{layer}"]).scores
    assert prefix == (5 if "reg4" in name else 1)
    assert_near(scores[f"cls_attention@{layer}"][0], weights[:, 0, prefix:])
    assert_near(scores[f"mean_attention@{layer}"][0], weights.mean(1)[:, prefix:])


@torch.no_grad()
def test_keys_are_those_of_the_block_that_made_the_features():
    encoder = built("vit_tiny_patch16_224", stage=[3])
    pixels, kept = frames(encoder), []
    network = theirs(encoder)
    network.blocks[3].attn.qkv.register_forward_hook(lambda module, args, out: kept.append(out))
    network(pixels[0])
    keys = kept[0].unflatten(-1, (3, 3, 64))[:, 1:, 1].mean(2)  # F N D, mean over three heads
    tokens = encoder(pixels, scores=["keys"])
    assert_near(tokens.scores["keys"][0], keys)
    expected = network.forward_intermediates(pixels[0], indices=[3], intermediates_only=True)[0]
    assert_near(tokens.features[0], expected.flatten(2).mT)


def test_no_hook_stays_behind():
    encoder = built("vit_tiny_patch16_224")
    encoder(frames(encoder), scores=["cls_attention"])
    assert not any(module._forward_pre_hooks for module in encoder.modules())


@pytest.mark.parametrize(
    "name", ["tf_efficientnet_lite0", "resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"]
)
@torch.no_grad()
def test_class_scores_of_a_frame_are_timms_own(name):
    encoder = built(name, classes="frame", stage=[-1])
    pixels = frames(encoder)
    assert encoder.class_count == 1000
    features = encoder(pixels).features[0]
    expected = theirs(encoder, num_classes=1000)(pixels[0])
    assert_near(features[..., -1000:], expected.unsqueeze(1).expand(-1, encoder.tokens_per_frame, -1))
    plain = built(name, stage=[-1])
    plain.tower.load_state_dict(encoder.tower.state_dict(), strict=False)
    assert torch.equal(features[..., encoder.scene_channels], plain(pixels).features[0])


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18", "swin_tiny_patch4_window7_224"])
@torch.no_grad()
def test_class_scores_of_patches_have_those_of_the_frame_as_mean(name):
    """So it is where a frame's features are averaged before one linear map."""
    encoder = built(name, classes="patch")
    pixels = frames(encoder)
    scores = encoder(pixels).features[0, ..., -1000:]
    assert scores.std(1).max() > 1e-4
    assert_near(scores.mean(1), theirs(encoder, num_classes=1000)(pixels[0]))


@pytest.mark.parametrize("model", ["tf_efficientnet_lite0", "resnet18", "resnet18.tv_in1k", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("shape", [(300, 300), (300, 450), (450, 300)])
def test_frames_are_prepared_as_timm_prepares_them(model, shape):
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    described = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(model).to_dict())
    expected = timm.data.create_transform(**described)(Image.fromarray(picture)).numpy()
    config = TimmConfig(model=model)
    got = config.frames(picture[None])[0]
    assert (config.image_size, config.interpolation) == (224, described["interpolation"])
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


def test_videos_are_prepared_almost_as_images():
    picture = np.random.default_rng(0).integers(0, 256, (2, 90, 160, 3), dtype=np.uint8)
    for model in ("tf_efficientnet_lite0", "resnet18.tv_in1k"):
        transform = TimmConfig(model=model, image_size=28).frames
        far = np.abs(transform.video(picture) - transform(picture)) * 255 * np.array(transform.std)[:, None, None]
        assert far.max() <= 2.01
    frame = np.abs(TimmConfig(fit="squash", image_size=28).frames.video(picture)).shape
    assert frame == (2, 3, 28, 28)


def test_settings_are_whole_when_they_are_saved():
    config = registry.config_of("encoder", "timm:name=resnet18.tv_in1k,stage=2+3,fit=pad")
    described = registry.describe("encoder", config)
    assert (described["model"], described["stage"], described["image_size"]) == ("resnet18.tv_in1k", [2, 3], 224)
    assert (described["interpolation"], described["fit"], described["crop"]) == ("bilinear", "pad", 1.0)
    assert registry.config_of("encoder", described) == config
    assert TimmConfig(model="vit_tiny_patch16_224.augreg_in21k", classes="frame").class_count == 21843


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "resnet19"}, "timm has no model 'resnet19'; did you mean resnet18"),
        ({"model": "hf-hub:somebody/anything"}, "timm has no model"),
        ({"model": "resnet18.nonsense"}, "has no weights 'nonsense'; it has .*a1_in1k"),
        ({"stage": [-1, -1]}, "stage = .*different stages"),
        ({"image_size": 0}, "image_size = 0"),
        ({"output_grid": 0}, "output_grid = 0"),
        ({"chunk": 0}, "chunk = 0"),
        ({"crop": 1.5}, "crop = 1.5"),
        ({"fit": "pad", "crop": 0.9}, "crop = 0.9: must be 1 with fit = 'pad'"),
        ({"interpolation": "nearest"}, "interpolation = 'nearest'"),
        ({"model": "vit_small_patch14_reg4_dinov2", "classes": "frame"}, "the model has no classifier"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        registry.config_of("encoder", {"name": "timm", **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "resnet18", "stage": [7]}, "has the stages -5 to 4"),
        ({"model": "hiera_tiny_224", "image_size": 100}, "timm cannot run 'hiera_tiny_224' on 100 pixels"),
        ({"model": "vit_tiny_patch16_224", "image_size": 8}, "timm cannot run 'vit_tiny_patch16_224' on 8 pixels"),
        ({"model": "vit_tiny_patch16_224", "classes": "patch"}, "gives no map; take 'frame'"),
        ({"model": "coat_tiny"}, "gives neither a map nor tokens"),
    ],
)
def test_what_cannot_be_built_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        registry.build("encoder", {"name": "timm", **settings})


def test_a_name_is_given_once():
    with pytest.raises(ConfigError, match="'name' is another name of 'model'"):
        registry.config_of("encoder", "timm:name=resnet18,model=resnet34")


def test_bad_pixels_and_scores():
    encoder = built("resnet18")
    with pytest.raises(InputError, match="64 pixels a side"):
        encoder(torch.zeros(1, 1, 3, 32, 32))
    with pytest.raises(InputError, match=r"'timm:resnet18' cannot give 'cls_attention'.*no scores at all"):
        encoder(frames(encoder), scores=["cls_attention"])
    vit = built("vit_tiny_patch16_224")
    with pytest.raises(InputError, match="has layers -12 to 11"):
        vit(frames(vit), scores=["cls_attention@12"])


@pytest.mark.parametrize("reducer", ["fastervlm:keep=4", "visionzip:dominant=3,contextual=1", "vispruner:keep=4"])
def test_reducers_that_rank_by_attention_work_on_vision_transformers_only(make_model, reducer):
    encoder = {"name": "timm", "model": "vit_tiny_patch16_224", "image_size": 64}
    model = make_model(encoder=encoder, path="plain", reducers=[reducer])
    tokens = model.reduce(model.encode(torch.rand(1, 2, 3, 64, 64)))
    assert tokens.mask.sum(-1).tolist() == [[4, 4]]
    with pytest.raises(ConfigError, match="timm"):
        make_model(encoder={"name": "timm", "model": "resnet18", "image_size": 64}, reducers=[reducer])


def test_gradients_reach_a_tower_that_is_trained_and_no_other():
    encoder = built("tf_efficientnet_lite0", stage=[2]).train()
    before = {key: value.clone() for key, value in encoder.named_buffers()}
    encoder(frames(encoder)).features.square().mean().backward()
    assert encoder.tower.conv_stem.weight.grad.abs().max() > 0
    assert encoder.tower.conv_head.weight.grad is None  # behind the stage
    assert all(torch.equal(value, before[key]) for key, value in encoder.named_buffers())
    encoder.requires_grad_(False)
    assert not encoder(frames(encoder)).features.requires_grad


def test_a_frozen_tower_drops_nothing_in_training():
    encoder = built("convnext_atto").requires_grad_(False)
    encoder.tower.stages[0].blocks[0].drop_path = timm.layers.DropPath(0.9).eval()
    pixels = frames(encoder)
    before = encoder(pixels).features
    assert torch.equal(encoder.train()(pixels).features, before)
    encoder.requires_grad_(True)
    assert not torch.equal(encoder.train()(pixels).features, before)


@pytest.mark.parametrize(
    ("settings", "side", "grid"),
    [
        ("swin_tiny_patch4_window7_224,stage=-1", 224, (7, 7)),
        ("resnet18,image_size=128,output_grid=2", 128, (2, 2)),
    ],
)
def test_a_model_is_saved_and_loaded_and_takes_other_stages(settings, side, grid, make_model, tmp_path):
    encoder = f"timm:name={settings}"
    model = make_model(encoder=encoder, path="plain")
    model.save_pretrained(tmp_path)
    loaded = MmllmForConditionalGeneration.from_pretrained(tmp_path).eval()
    pixels = torch.rand(1, 1, 3, side, side)
    with torch.no_grad():
        assert torch.equal(loaded.encode(pixels).features, model.encode(pixels).features)
    assert loaded.encoder.grid == grid
    assert loaded.with_stages(reducers=["uniform:keep=4"]).encoder is loaded.encoder
