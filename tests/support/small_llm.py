"""A small LLM with random weights and rows of text, a picture and text, for tests of reducers inside the LLM."""

import torch

from mmllm.llm.values import LlmPass

BEFORE, VISUAL, AFTER = 3, 24, 4
LENGTH = BEFORE + VISUAL + AFTER


def small_llm():
    """A Llama of five layers, width 32, with two key heads of four; attention is far from even."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=5, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=60, max_position_embeddings=128,
        )
    ).eval()  # fmt: skip
    for weight in model.parameters():
        weight.data.mul_(3.0)
    return model


def small_rows():
    """Embeddings of two rows, 2 LENGTH 32."""
    return torch.randn(2, LENGTH, 32, generator=torch.Generator().manual_seed(1))


def small_pass(stage, rows=2, valid=None):
    """The pass of such rows; `valid` (bool, rows P) is False at padding before or behind them."""
    valid = torch.ones(rows, LENGTH, dtype=torch.bool) if valid is None else valid
    number = valid.long().cumsum(-1) - 1
    return LlmPass(
        visual=(number >= BEFORE) & (number < BEFORE + VISUAL) & valid, question=(number >= BEFORE + VISUAL) & valid,
        prompt=valid, place=(number - BEFORE).clamp(0), frame=torch.zeros_like(number), valid=valid, stages=(stage,),
    )  # fmt: skip
