"""Scores of timm's plain vision transformers, from what goes into the attention of a block.

F frames, N tokens with class and register tokens first, C width, H heads, D width of a head
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from mmllm.encoders.attention import attention_row, mean_keys, received_attention


def plain_attentions(tower: Any) -> list[Any]:
    """The attention of each block of a plain vision transformer; empty for any other network."""
    from timm.models.vision_transformer import Attention, VisionTransformer

    if not isinstance(tower, VisionTransformer):
        return []
    attentions = [getattr(block, "attn", None) for block in tower.blocks]
    return attentions if all(type(attention) is Attention for attention in attentions) else []


def scores_of(tower: Any) -> frozenset[str]:
    """The kinds of scores that a network can give."""
    if not plain_attentions(tower):
        return frozenset()
    return frozenset({"mean_attention", "keys"} | ({"cls_attention"} if tower.cls_token is not None else set()))


@contextlib.contextmanager
def attention_inputs(attentions: list[Any], layers: Collection[int]) -> Iterator[dict[int, Tensor]]:
    """Layer -> F N C, what went into its attention, once the network has run inside this context."""
    inputs: dict[int, Tensor] = {}

    def keeper(layer: int) -> Callable[[Any, Any], None]:
        def keep(_: Any, arguments: Any) -> None:
            inputs[layer] = arguments[0]

        return keep

    hooks = [attentions[layer].register_forward_pre_hook(keeper(layer)) for layer in layers]
    try:
        yield inputs
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def attention_score(kind: str, attention: Any, hidden: Tensor, *, prefix: int) -> Tensor:
    """float32, F N: a score of each patch in a block; of `keys` F N D.

    Args:
        kind: `cls_attention`, `mean_attention` or `keys`.
        attention: timm's module.
        hidden: F N C, what goes into it.
        prefix: how many of the first tokens are no patches.
    """
    heads = attention.num_heads
    stacked = rearrange(attention.qkv(hidden), "f n (three h d) -> three f h n d", three=3, h=heads)
    normed = attention.q_norm(stacked[0]), attention.k_norm(stacked[1])
    queries, keys = (rearrange(part, "f h n d -> f n (h d)") for part in normed)
    if kind == "keys":
        return mean_keys(keys, heads=heads)[:, prefix:]
    if kind == "cls_attention":
        return attention_row(queries[:, 0], keys, heads=heads)[:, prefix:]
    return received_attention(queries, keys, heads=heads)[:, prefix:]
