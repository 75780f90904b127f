"""ConvNeXt's tokens are timm's last map; weights load under the names it goes by."""

import pytest
import timm
import torch
from nearness import assert_near

from mmllm.encoders.convnext import ConvNextConfig, ConvNextEncoder, load_convnext_tower
from mmllm.errors import CheckpointError, ConfigError, InputError

TINY = ConvNextConfig(image_size=64, depths=(1, 1, 2, 1), dims=(8, 16, 24, 32), chunk=2)


@pytest.fixture
def pixels():
    return torch.randn(1, 3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def trunk():
    torch.manual_seed(0)
    return timm.create_model("convnext_xxlarge", depths=TINY.depths, dims=TINY.dims, num_classes=5).eval()


@pytest.mark.parametrize("form", ["timm", "open_clip", "slowfast"])
def test_features(pixels, form):
    theirs = trunk()
    state = theirs.state_dict()
    if form == "open_clip":
        state = {f"visual.trunk.{name}": value for name, value in state.items()} | {"visual.head.x": torch.zeros(1)}
    if form == "slowfast":
        state = {f"model.vision_tower.{name.replace('.gamma', '.weight')}": value for name, value in state.items()}
    encoder = ConvNextEncoder(TINY).eval()
    load_convnext_tower(encoder, state)
    tokens = encoder(pixels)
    assert (tokens.grid, encoder.width) == ((2, 2), 32)
    with torch.no_grad():
        expected = theirs.forward_features(pixels[0]).flatten(2).mT
    assert_near(tokens.features[0], expected)


def test_sizes_of_the_published_trunk():
    with torch.device("meta"):
        encoder = ConvNextEncoder(ConvNextConfig())
    assert encoder.grid == (18, 18)
    assert sum(weight.numel() for weight in encoder.parameters()) == pytest.approx(843.4e6, rel=1e-3)


def test_no_scores(pixels):
    with pytest.raises(InputError, match=r"'cls_attention': it has no class token; it can give no scores"):
        ConvNextEncoder(TINY)(pixels, scores=["cls_attention"])


def test_bad_input(pixels):
    with pytest.raises(ConfigError, match="multiple of 32"):
        ConvNextConfig(image_size=100)
    with pytest.raises(InputError, match="64 pixels a side"):
        ConvNextEncoder(TINY)(pixels[..., :32, :32])
    state = trunk().state_dict()
    with pytest.raises(CheckpointError, match="missing"):
        load_convnext_tower(ConvNextEncoder(TINY), {k: v for k, v in state.items() if "stages.3" not in k})
    with pytest.raises(CheckpointError, match="nowhere"):
        load_convnext_tower(ConvNextEncoder(TINY), {})
