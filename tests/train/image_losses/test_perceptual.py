"""The perceptual loss: a distance of normalised features, from a folder of timm, whose weights stay as they are."""

import json

import frozen_networks
import pytest
import torch
from safetensors.torch import load_file

from mmllm.errors import CheckpointError, ConfigError
from mmllm.train.image_losses.perceptual import PerceptualConfig, PerceptualDistance


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return frozen_networks.resnet(tmp_path_factory.mktemp("resnet"))


def pictures(seed):
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_it_is_a_distance_that_grows_with_the_difference(source):
    distance = PerceptualDistance(PerceptualConfig(source=source, layers=(0, 1, 2)), 32)
    images, noise = pictures(1), pictures(2)
    assert float(distance(images, images)) == 0
    near, far = (float(distance(images + share * (noise - images), images)) for share in (0.1, 1.0))
    assert 0 < near < far < 4


def test_it_is_the_mean_of_squared_distances_of_unit_features(source):
    import timm

    weights = {"source": "", "state_dict": load_file(f"{source}/model.safetensors")}
    network = timm.create_model(
        "test_resnet", pretrained=True, features_only=True, out_indices=(1, 3), pretrained_cfg_overlay=weights
    ).eval()
    distance = PerceptualDistance(PerceptualConfig(source=source, layers=(1, 3)), 32)
    ours, theirs = ([layer.detach() for layer in network(pictures(seed))] for seed in (1, 2))  # mean and std are 0.5
    expected = [
        (2 - 2 * torch.nn.functional.cosine_similarity(one, other, dim=1)).mean()
        for one, other in zip(ours, theirs, strict=True)
    ]
    found = distance(pictures(1), pictures(2))
    torch.testing.assert_close(found, torch.stack(expected).mean(), rtol=1e-4, atol=1e-5)


def test_the_gradient_reaches_the_reconstruction_and_not_the_network(source):
    distance = PerceptualDistance(PerceptualConfig(source=source), 32)
    made = pictures(1).requires_grad_()
    distance(made, pictures(2)).backward()
    assert made.grad.any()
    assert all(weight.grad is None for weight in distance.network.parameters())
    assert not distance.network.training


def test_vgg16_gives_the_layers_of_lpips():
    import timm

    with torch.device("meta"):
        network = timm.create_model("vgg16", features_only=True, out_indices=PerceptualConfig().layers)
    assert network.feature_info.channels() == [64, 128, 256, 512, 512]
    assert network.feature_info.reduction() == [1, 2, 4, 8, 16]


def test_bad_sources_and_layers_are_named(source, tmp_path):
    for layers in ((9,), ()):
        with pytest.raises(ConfigError, match="layers"):
            PerceptualDistance(PerceptualConfig(source=source, layers=layers), 32)
    with pytest.raises(CheckpointError, match="no model"):
        PerceptualDistance(PerceptualConfig(source=str(tmp_path)), 32)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_resnet"}))
    with pytest.raises(CheckpointError, match="no network of timm"):
        PerceptualDistance(PerceptualConfig(source=str(tmp_path)), 32)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(CheckpointError, match="no network of timm"):
        PerceptualDistance(PerceptualConfig(source=str(tmp_path)), 32)
    with pytest.raises(ConfigError, match="weight"):
        PerceptualConfig(weight=0)


def test_networks_that_cannot_be_compared_are_refused(tmp_path):
    import timm
    from timm.models import save_for_hf

    small = {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 1)}
    swin = timm.create_model("swin_tiny_patch4_window7_224", **small)
    for name, network, fields in (("convnext", timm.create_model("test_convnext"), {}), ("swin", swin, small)):
        save_for_hf(network, str(tmp_path / name), model_args=fields, safe_serialization=True)
    with pytest.raises(ConfigError, match="reads no images of 8 pixels"):
        PerceptualDistance(PerceptualConfig(source=str(tmp_path / "convnext"), layers=(0, 1, 2)), 8)
    with pytest.raises(ConfigError, match="channels last"):
        PerceptualDistance(PerceptualConfig(source=str(tmp_path / "swin"), layers=(0,)), 224)
