"""LLaVA-1.5 in transformers' layout: the same logits, and every tensor back under its name."""

import pytest
import torch
from nearness import assert_near
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from mmllm.checkpoints import llava
from mmllm.errors import CheckpointError


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=28, patch_size=7
    )
    text = LlamaConfig(vocab_size=120, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=118)
    ).eval()


def test_logits_are_transformers_own_and_no_bit_changes_there_and_back(theirs, sight):
    state = theirs.state_dict()
    model = llava.from_upstream(state, theirs.config.to_dict())
    pixels = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        wanted = theirs(torch.tensor([[1, 5, *[118] * 16, 6, *[118] * 16, 7]]), pixel_values=pixels).logits
        logits = model(torch.tensor([[1, 5, 118, 6, 118, 7]]), pixel_values=pixels).logits
    assert_near(logits, wanted)
    assert sight(model, {"input_ids": torch.tensor([[1, 5, 118, 6, 118, 7]]), "pixel_values": pixels}) > 1e-3
    back = llava.to_upstream(model)
    assert set(back) == set(state)
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_names_of_older_files_are_kept(theirs):
    def old(name):
        name = name.removeprefix("model.").replace("vision_tower.", "vision_tower.vision_model.")
        if name == "lm_head.weight":
            return "language_model.lm_head.weight"
        return name.replace("language_model.", "language_model.model.")

    state = {old(name): value for name, value in theirs.state_dict().items()}
    back = llava.to_upstream(llava.from_upstream(state, theirs.config))
    assert set(back) == set(state)
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_what_does_not_fit_is_refused_by_name(theirs):
    state = theirs.state_dict()
    with pytest.raises(CheckpointError, match=r"missing: model\.multi_modal_projector\.linear_1\.bias"):
        llava.from_upstream({k: v for k, v in state.items() if "linear_1.bias" not in k}, theirs.config)
    with pytest.raises(CheckpointError, match=r"unexpected: model\.surprise"):
        llava.from_upstream(state | {"model.surprise": torch.zeros(1)}, theirs.config)
