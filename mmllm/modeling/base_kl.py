"""Keeps what an LLM says without a video near what it said before it got adapters.

The answers of a model that learns to look drift, and facts are lost with them. Here each word that the LLM could say
next keeps its probability: the loss is the KL divergence from the LLM without its adapters, as RLHF keeps a policy near
its reference (https://arxiv.org/abs/1909.08593). Rows of text alone have it; what is said of videos is free.

B rows, P positions, D LLM width, R positions that predict a word in rows of text alone, V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmllm.modeling.placeholders import Placed


def divergence(logits: Tensor, base: Tensor, barred: Tensor | None = None) -> Tensor:
    """The sum over rows of the KL divergence of softmax(`logits`) from softmax(`base`), both R V.

    Args:
        logits: with adapters.
        base: without.
        barred: ids, K, that get no probability in `base`: time tokens, which words before adapters do not need.
    """
    base = base.float()
    if barred is not None:
        base = base.index_fill(-1, barred, -torch.inf)
    return functional.kl_div(functional.log_softmax(logits.float(), dim=-1), base.softmax(dim=-1), reduction="sum")


def text_alone(placed: Placed) -> Tensor:
    """bool, B. The rows in which nothing is seen or heard."""
    alone = (placed.which < 0).all(dim=1)
    if placed.cross_attention_mask is not None:
        alone &= ~placed.cross_attention_mask.any(dim=1).to(alone.device)
    return alone


@contextmanager
def without_adapters(module: nn.Module) -> Iterator[None]:
    """Inside, peft's adapters in a module add nothing."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [layer for layer in module.modules() if isinstance(layer, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def base_kl(
    llm: Any, logits_of: Callable[[Tensor], Tensor], inputs: dict[str, Any], hidden: Tensor, placed: Placed,
    time_ids: Tensor | None,
) -> Tensor:  # fmt: skip
    """The divergence summed over the positions of rows of text alone; 0 in a batch without one.

    Args:
        llm: with adapters; its `base_model` is the decoder.
        logits_of: hidden states to logits.
        inputs: the decoder's arguments for the batch, which are tensors with a row for each row of the batch.
        hidden: B P D, its last hidden states with adapters.
        placed: the batch.
        time_ids: ids of the time tokens, K.
    """
    rows = text_alone(placed).to(hidden.device)
    if not rows.any():
        return hidden.new_zeros(())
    given = placed.attention_mask.to(hidden.device)[rows].bool()
    predicts = given[:, :-1] & given[:, 1:]  # a row's last position predicts nothing that is given
    with torch.no_grad(), without_adapters(llm):
        before = llm.base_model(**{name: value[rows] for name, value in inputs.items()}, use_cache=False)
        base = logits_of(before.last_hidden_state[:, :-1][predicts])
    return divergence(logits_of(hidden[rows][:, :-1][predicts]), base, time_ids)
