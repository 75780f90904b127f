"""A second model with other layers: weights are shared, the first model stays as it is."""

import torch
from torch import nn
from transformers import AutoModelForCausalLM, Gemma3TextConfig

from mmllm.llm.layers import with_layers, with_modules


def test_a_model_with_some_of_its_layers_is_the_truncated_one(decoder_configs):
    config = decoder_configs["llama"](num_hidden_layers=3)
    model = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.tensor([[5, 9, 11]])
    before = model(ids).logits
    short = with_layers(model, model.model, list(model.model.layers)[:2], range(2))
    expected = AutoModelForCausalLM.from_config(decoder_configs["llama"](num_hidden_layers=2)).eval()
    expected.load_state_dict(model.state_dict(), strict=False)
    assert torch.equal(short(ids).logits, expected(ids).logits)
    assert torch.equal(model(ids).logits, before)
    assert short.lm_head is model.lm_head
    assert len(model.model.layers) == model.config.num_hidden_layers == 3


def test_inside_a_video_model_only_the_path_to_the_decoder_is_new(make_model):
    model = make_model()
    decoder = model.language_model.model
    second = with_layers(model, decoder, list(decoder.layers), range(len(decoder.layers)), norm=nn.Identity())
    assert isinstance(second.language_model.model.norm, nn.Identity)
    assert not isinstance(decoder.norm, nn.Identity)
    assert second.encoder is model.encoder
    assert second.language_model is not model.language_model


def test_layers_keep_their_kind_of_attention():
    config = Gemma3TextConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, vocab_size=120, layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    decoder = model.model
    short = with_layers(model, decoder, [decoder.layers[1], decoder.layers[2]], [1, 2])
    assert short.model.config.layer_types == ["full_attention", "sliding_attention"]
    assert decoder.config.layer_types == config.layer_types


def test_a_module_with_another_part_leaves_the_first_alone():
    first = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    second = with_modules(first, **{"1": nn.Identity()})
    assert isinstance(second[1], nn.Identity)
    assert isinstance(first[1], nn.ReLU)
    assert second[0] is first[0]
