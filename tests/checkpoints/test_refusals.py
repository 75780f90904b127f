"""Checkpoints that cannot be used are refused by name before anything large is read or made."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmllm.checkpoints.weights import Weights
from mmllm.errors import CheckpointError, ConfigError
from mmllm.inference.answering import VideoQA

pytestmark = pytest.mark.usefixtures("_nothing_is_read")


@pytest.fixture
def folder(published, tmp_path):
    """A copy of a tiny published model that a test may spoil."""
    copy = tmp_path / "model"
    shutil.copytree(published("llava")[0], copy)
    return copy


@pytest.fixture
def _nothing_is_read(monkeypatch):
    monkeypatch.setattr(Weights, "read", lambda self: pytest.fail("the weights were read"))


def spoiled(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    config = {**config, **changes}
    (folder / "config.json").write_text(json.dumps(config))


def refused(folder, match, error=CheckpointError, **options):
    with pytest.raises(error, match=match):
        VideoQA.from_pretrained(folder, **options)


def test_a_folder_without_a_model(tmp_path):
    refused(tmp_path, "no config.json")
    refused(tmp_path / "nowhere", "no such folder")
    (tmp_path / "config.json").write_text("{half")
    refused(tmp_path, "cannot be read")


def test_an_unknown_family(folder):
    spoiled(folder, model_type="blip", architectures=["Blip"])
    refused(folder, "model_type 'blip'.*belongs to no family: must be one of mmllm, fastvlm, lita, llava")


def test_a_missing_file(folder):
    (folder / "model.safetensors").unlink()
    refused(folder, "no weights in this folder")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"a": torch.zeros(1)}, folder / "model-00001-of-00002.safetensors")
    refused(folder, "missing model-00002-of-00002.safetensors")
    index["weight_map"]["a"] = "../elsewhere.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, "outside of its folder")


def test_a_half_copied_file(folder):
    file = folder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    refused(folder, "half-copied")
    file.write_bytes(content[:100])
    refused(folder, "only the start")
    file.write_bytes(b"")
    refused(folder, "only the start")
    file.write_bytes((20).to_bytes(8, "little") + b"x" * 40)
    refused(folder, "header")


def test_a_pickle_needs_permission(folder):
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    refused(folder, "allow_pickle=True")


@pytest.mark.filterwarnings("ignore")
def test_a_pickle_with_code_is_refused_also_with_permission(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"weight": print}, folder / "pytorch_model.bin")
    refused(folder, "more than tensors", allow_pickle=True)
    torch.save([torch.zeros(1)], folder / "pytorch_model.bin")
    refused(folder, "no state dict", allow_pickle=True)


def test_a_tower_of_another_width(folder):
    config = json.loads((folder / "config.json").read_text())
    spoiled(folder, vision_config={**config["vision_config"], "hidden_size": 48})
    refused(folder, r"misshaped: .*instead of")


def test_an_activation_that_is_not_clips(folder):
    config = json.loads((folder / "config.json").read_text())
    spoiled(folder, vision_config={**config["vision_config"], "hidden_act": "relu"})
    refused(folder, "hidden_act = 'relu'", error=ConfigError)


def test_a_vocabulary_that_does_not_fit(folder):
    config = json.loads((folder / "config.json").read_text())
    spoiled(folder, text_config={**config["text_config"], "vocab_size": 300})
    refused(folder, r"embed_tokens.weight \(320, 32\) instead of \(300, 32\)")
    spoiled(folder, text_config={**config["text_config"], "vocab_size": 200})
    refused(folder, "tokenizer has 262 ids, the embedding table 200 rows")
    spoiled(folder, text_config=config["text_config"], image_token_index=7)
    refused(folder, "config.json has id 7 for <image>, the tokenizer has 4")


def test_a_missing_tokenizer(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    refused(folder, "no tokenizer in this folder")


def test_images_prepared_in_another_way(folder):
    file = folder / "processor_config.json"
    config = json.loads(file.read_text())
    config["image_processor"]["crop_size"] = {"height": 56, "width": 56}
    file.write_text(json.dumps(config))
    refused(folder, "the encoder needs 64 pixels a side")


def test_what_a_family_does_not_have(folder):
    spoiled(folder, vision_feature_layer=[-2, -1])
    refused(folder, "only a single layer")
    spoiled(folder, vision_feature_layer=-2, projector_hidden_act="relu")
    refused(folder, "projector_hidden_act = 'relu'")


def test_a_half_copied_model_of_our_own(untrained_qa, tmp_path):
    untrained_qa.model.save_pretrained(tmp_path)
    untrained_qa.processor.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    refused(tmp_path, "half-copied|only the start")
