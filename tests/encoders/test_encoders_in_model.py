"""Every real encoder, behind a reducer that suits it, survives saving and loading inside a whole model."""

import pytest
import torch

from mmllm.config import MmllmConfig
from mmllm.model import MmllmForConditionalGeneration

TEXT = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 300}  # fmt: skip
VIT = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 3, "heads": 4, "mlp_width": 48}
PAIRS = {
    "clip": (VIT, ["hired:ratio=0.5", "random:keep=4"]),
    "siglip": (VIT, ["fastervlm:keep=4,score=probe_attention"]),
    "dinov2": (VIT, ["fastervlm:ratio=0.5"]),
    "convnext": ({"image_size": 64, "depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}, ["video_budget:total=6"]),
    "fastvithd": ({"image_size": 128, "layers": [1, 1, 1, 1, 1], "dims": [4, 8, 16, 32, 64]}, ["uniform:keep=2"]),
    "timm": ({"model": "tf_efficientnet_lite0", "image_size": 64, "stage": [-1]}, ["divprune:keep=2"]),
}


@pytest.mark.parametrize("name", PAIRS)
def test_saved_and_loaded(name, tmp_path):
    fields, reducers = PAIRS[name]
    config = MmllmConfig(
        text_config=TEXT, encoder={"name": name, **fields}, reducers=reducers, path="slowfast:mode=temporal",
        num_time_tokens=10, time_token_ids=list(range(290, 300)), video_token_id=301, image_token_id=302,
    )  # fmt: skip
    torch.manual_seed(0)
    model = MmllmForConditionalGeneration(config).eval()
    inputs = {
        "input_ids": torch.tensor([[1, 301, 5, 6]]),
        "pixel_values_videos": torch.rand(1, 4, 3, fields["image_size"], fields["image_size"]),
    }
    model.save_pretrained(tmp_path)
    loaded = MmllmForConditionalGeneration.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        logits = model(**inputs).logits
        assert torch.equal(loaded(**inputs).logits, logits)
    assert logits.shape == (1, 3 + 4, 300)
