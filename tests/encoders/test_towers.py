"""Two encoders side by side: features and scores of both on one grid, pixels for each, and what is refused."""

import numpy as np
import pytest
import torch

from mmllm import registry
from mmllm.encoders.towers import TowersConfig, prepared_again
from mmllm.errors import ConfigError, InputError
from mmllm.modeling.tower import regridded
from mmllm.preprocessing.frames import FrameTransform

SIGLIP = {"name": "siglip", "image_size": 32, "patch_size": 8, "width": 8, "layers": 1, "heads": 2, "mlp_width": 8}
DINO = {
    "name": "dinov2", "image_size": 28, "patch_size": 14, "width": 12, "layers": 1, "heads": 2, "mlp_width": 8
}  # fmt: skip


def towers(**settings):
    torch.manual_seed(0)
    return registry.build("encoder", {"name": "towers", "first": SIGLIP, "second": DINO, "grid": 3, **settings}).eval()


@torch.no_grad()
def test_features_are_those_of_each_tower_on_the_common_grid():
    encoder = towers()
    assert (encoder.width, encoder.tower_widths, encoder.grid) == (20, (8, 12), (3, 3))
    pixels = torch.rand(1, 2, 3, 32, 32) * 2 - 1
    tokens = encoder(pixels)
    first = encoder.first(pixels).features
    assert torch.equal(tokens.features[..., :8], regridded(first[0], (4, 4), (3, 3)).unsqueeze(0))
    seen = prepared_again(pixels, encoder.config.frames, encoder.second.config.frames)
    second = encoder.second(seen).features
    assert torch.equal(tokens.features[..., encoder.scene_channels], regridded(second[0], (2, 2), (3, 3)).unsqueeze(0))
    assert tokens.features[..., encoder.scene_channels].shape[-1] == 12


@torch.no_grad()
def test_scores_come_from_the_tower_that_has_them_the_first_before_the_second():
    encoder = towers()
    pixels = torch.rand(1, 2, 3, 32, 32)
    tokens = encoder(pixels, scores=["cls_attention", "mean_attention", "probe_attention"])
    assert set(tokens.scores) == {"cls_attention", "mean_attention", "probe_attention"}
    own = encoder.first(pixels, scores=["mean_attention"]).scores["mean_attention"]
    expected = regridded(own[0].unsqueeze(-1), (4, 4), (3, 3)).squeeze(-1)
    assert torch.equal(tokens.scores["mean_attention"][0], expected)
    with pytest.raises(InputError, match="cannot give 'entropy'; it can give cls_attention"):
        encoder(pixels, scores=["entropy"])


@torch.no_grad()
def test_frames_that_are_masked_are_not_run():
    encoder = towers()
    pixels, mask = torch.rand(1, 3, 3, 32, 32), torch.tensor([[True, False, True]])
    tokens = encoder(pixels, frame_mask=mask)
    assert torch.equal(tokens.frame_mask, mask)
    assert not tokens.features[0, 1].any()


def test_each_tower_gets_its_own_normalisation_and_size():
    frame = np.random.default_rng(0).integers(64, 192, (1, 40, 40, 3), dtype=np.uint8)
    given = FrameTransform(size=40, fit="pad", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    wanted = FrameTransform(size=40, fit="pad", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    again = prepared_again(torch.from_numpy(given(frame))[None], given, wanted)
    torch.testing.assert_close(again[0], torch.from_numpy(wanted(frame)), rtol=0, atol=1e-5)
    smaller = FrameTransform(size=30, fit="pad", mean=wanted.mean, std=wanted.std)
    again = prepared_again(torch.from_numpy(given(frame))[None], given, smaller)
    torch.testing.assert_close(again[0], torch.from_numpy(smaller(frame)), rtol=0, atol=0.02)  # bytes are rounded
    same = torch.rand(1, 1, 3, 40, 40)
    assert prepared_again(same, given, given) is same


def test_frames_are_prepared_for_the_larger_tower():
    config = TowersConfig(first=DINO, second=SIGLIP, grid=None)
    assert (config.frames.size, config.frames.fit, config.frames.mean) == (32, "pad", (0.5, 0.5, 0.5))


def test_text_describes_towers_with_semicolons_and_settings_survive_saving():
    text = "towers:first=tiny:width=8;heads=2,second=tiny:image_size=32;heads=2;width=4,grid=none"
    config = registry.config_of("encoder", text)
    assert (config.first["width"], config.second["image_size"], config.grid) == (8, 32, None)
    assert registry.config_of("encoder", registry.describe("encoder", config)) == config
    encoder = registry.build("encoder", config)
    assert (encoder.grid, encoder.width) == ((4, 4), 12)


def test_a_backbone_of_timm_is_a_tower():
    config = TowersConfig(first="timm:name=resnet18;stage=3;image_size=64", second=SIGLIP, grid=None)
    assert (config.frames.size, config.frames.fit, config.frames.crop) == (64, "pad", 1.0)
    assert TowersConfig(first="timm:name=resnet18;image_size=64", second=SIGLIP, fit="crop").frames.crop == 0.95
    encoder = registry.build("encoder", config).eval()
    assert (encoder.grid, encoder.tower_widths) == ((4, 4), (256, 8))
    assert encoder(torch.rand(1, 1, 3, 64, 64)).features.shape == (1, 1, 16, 264)


def test_the_published_towers_have_the_published_sizes():
    with torch.device("meta"):
        encoder = registry.build("encoder", "towers")
    assert (encoder.tower_widths, encoder.grid, encoder.tokens_per_frame) == ((1152, 1536), (24, 24), 576)
    assert encoder.config.frames.size == 384


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"grid": 0}, "grid = 0"),
        ({"first": "nothing"}, "unknown encoder 'nothing'"),
        ({"second": {"name": "towers", "first": SIGLIP, "second": DINO}}, "a tower is one encoder, not two"),
        ({"second": "flextok"}, "gives no whole grid of patches"),
    ],
)
def test_what_cannot_be_a_tower_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message), torch.device("meta"):
        towers(**settings)
