"""A vision tower's published weights, from the folders of three libraries or from one file, into the encoder."""

import json

import pytest
import torch
from nearness import assert_near
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModel

from mmllm import registry
from mmllm.checkpoints.towers import load_tower
from mmllm.encoders.clip import ClipConfig, ClipEncoder
from mmllm.encoders.clip_names import from_transformers
from mmllm.errors import CheckpointError, ConfigError

TINY = ClipConfig(image_size=24, patch_size=4, width=32, layers=2, heads=4, mlp_width=48)
FILES = {"timm": "model.safetensors", "open_clip": "open_clip_model.safetensors"}


def clip_folder(folder, library, activation="quick_gelu", width=32):
    torch.manual_seed(3)
    config = CLIPVisionConfig(hidden_size=width, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                              image_size=24, patch_size=4, hidden_act=activation)  # fmt: skip
    tower = CLIPVisionModel(config).eval()
    if library == "transformers":
        tower.save_pretrained(folder)
        return tower
    quick = activation == "quick_gelu"
    state = from_transformers(tower.state_dict(), library)
    prefix = "visual." if library == "open_clip" else ""
    save_file({f"{prefix}{name}": value.contiguous() for name, value in state.items()}, folder / FILES[library])
    if library == "open_clip":
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"quick_gelu": quick}}))
    else:
        name = f"vit_large_patch14_clip{'_quickgelu' if quick else ''}_336"
        (folder / "config.json").write_text(json.dumps({"architecture": name}))
    return tower


@pytest.mark.parametrize("library", ["transformers", "timm", "open_clip"])
def test_clip_from_the_folder_of_any_library(tmp_path, library):
    tower = clip_folder(tmp_path, library)
    encoder = ClipEncoder(TINY).eval()
    load_tower(encoder, tmp_path)
    pixels = torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        wanted = tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        features = encoder(pixels.unsqueeze(0)).features[0]
    assert_near(features, wanted)


@pytest.mark.parametrize("library", ["transformers", "timm", "open_clip"])
def test_another_activation_or_width_is_refused(tmp_path, library):
    clip_folder(tmp_path, library, activation="gelu")
    with pytest.raises(CheckpointError, match="trained with activation 'gelu', this tower has 'quick_gelu'"):
        load_tower(ClipEncoder(TINY), tmp_path)
    other = tmp_path / "wide"
    other.mkdir()
    clip_folder(other, library, width=48)
    with pytest.raises(CheckpointError, match=r"misshaped: .*48.* instead of .*32"):
        load_tower(ClipEncoder(TINY), other)


SMALL = {
    "siglip": {"image_size": 24, "patch_size": 4, "width": 32, "layers": 2, "heads": 4, "mlp_width": 48},
    "dinov2": {"image_size": 24, "patch_size": 4, "width": 32, "layers": 2, "heads": 4, "mlp_width": 48},
    "convnext": {"image_size": 32, "depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]},
    "fastvithd": {"image_size": 64, "layers": [1, 1, 1, 1, 1], "dims": [4, 8, 16, 32, 64]},
}


@pytest.mark.parametrize("name", SMALL)
def test_from_one_file_of_a_whole_model(tmp_path, name):
    first, second = (registry.build("encoder", {"name": name, **SMALL[name]}).eval() for _ in range(2))
    state = {f"model.vision_tower.{key}": value.contiguous() for key, value in first.tower.state_dict().items()}
    save_file({**state, "model.layers.0.mlp.weight": torch.zeros(2)}, tmp_path / "tower.safetensors")
    load_tower(second, tmp_path / "tower.safetensors")
    pixels = torch.rand(1, 1, 3, SMALL[name]["image_size"], SMALL[name]["image_size"])
    with torch.no_grad():
        assert torch.equal(second(pixels).features, first(pixels).features)


def test_what_cannot_be_loaded_says_why(tmp_path):
    clip_folder(tmp_path, "transformers")
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match="half-copied"):
        load_tower(ClipEncoder(TINY), tmp_path)
    file.unlink()
    with pytest.raises(CheckpointError, match="no weights in this folder"):
        load_tower(ClipEncoder(TINY), tmp_path)
    torch.save(CLIPVisionModel(CLIPVisionConfig(**_sizes())).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickles"):
        load_tower(ClipEncoder(TINY), tmp_path)
    load_tower(ClipEncoder(TINY), tmp_path, allow_pickle=True)
    with pytest.raises(CheckpointError, match="there is no such file"):
        load_tower(ClipEncoder(TINY), tmp_path / "nowhere.safetensors")
    with pytest.raises(ConfigError, match="TinyEncoder has no published weights"):
        load_tower(registry.build("encoder", "tiny"), tmp_path)


def _sizes():
    return {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "image_size": 24, "patch_size": 4}  # fmt: skip
