"""Tiny decoders of several families, with attention that is not flat, and prompts with visual positions."""

import pytest
import torch
from own_clips import together
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from mmllm.llm.values import LlmPass

__all__ = ["together"]

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 60, "max_position_embeddings": 128, "pad_token_id": 0, "head_dim": 8,
         "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config),
    "phi3": (Phi3ForCausalLM, Phi3Config),
    "gemma": (GemmaForCausalLM, GemmaConfig),
}


@pytest.fixture(scope="session")
def make_llm():
    """Makes the decoder of a family, always the same."""

    def make(family: str = "llama", **fields):
        torch.manual_seed(0)
        cls, config = FAMILIES[family]
        sizes = {name: value for name, value in {**SIZES, **fields}.items() if name != "head_dim" or family != "phi3"}
        model = cls(config(**sizes)).eval()
        for weight in model.parameters():
            weight.data.mul_(3.0)
        return model

    return make


@pytest.fixture(scope="session")
def make_pass():
    """Makes the pass of a prompt: `lead` text positions, `visual` ones on a line, `tail` text positions."""

    def make(*stages, rows=2, pad=(0, 0), lead=3, visual=16, tail=5):
        length, most = lead + visual + tail, max(pad)
        number = (torch.arange(most + length) - most).expand(rows, -1)
        skipped = torch.tensor(pad[:rows]).unsqueeze(1)
        valid = torch.arange(most + length) >= skipped  # a row with less padding has more text in front
        is_visual = (number >= lead) & (number < lead + visual)
        return LlmPass(
            visual=is_visual,
            question=number >= lead + visual,
            prompt=valid,
            place=(number - lead).clamp(0, visual - 1),
            grid=None,
            frame=torch.zeros_like(number),
            valid=valid,
            stages=stages,
        )

    return make


@pytest.fixture(params=[1, 2, 3, 4])
def threads(request):
    """How many threads torch computes with."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
