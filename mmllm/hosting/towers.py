"""Facts about vision towers that several families share: where blocks are, and which of them made the features.

F frames, N patches of a frame (with a class token, if there is one)
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

from mmllm.hosting.scores import Tower

_ATTENTION = ("self_attn", "attn", "attention")
"""Names of a block's attention, in transformers' towers."""


def attentions_of(tower: nn.Module) -> list[nn.Module]:
    """The attention module of each block of a tower of transformers; empty for other towers."""
    for module in tower.modules():
        if not isinstance(module, nn.ModuleList) or not len(module):
            continue
        own = [getattr(block, name) for block in module for name in _ATTENTION if hasattr(block, name)]
        attentions: list[nn.Module] = [attention for attention in own if hasattr(attention, "config")]
        if len(attentions) == len(module):
            return attentions
    return []


def tower_of(
    tower: nn.Module, *, layer: Any = -1, cls: bool = False, full: Collection[int] | None = None
) -> Tower | None:
    """A tower; None if its attention cannot be noted.

    Args:
        tower: the module.
        layer: which hidden state is projected, as `vision_feature_layer` counts them: 0 goes into the first block. Of
            several, the last one.
        cls: whether a class token is the first of each frame's tokens.
        full: blocks that attend to whole frames; None for all.
    """
    attentions = attentions_of(tower)
    if not attentions:
        return None
    number = max(layer) if isinstance(layer, (list, tuple)) and min(layer) >= 0 else layer
    number = max(number) if isinstance(number, (list, tuple)) else number
    block = len(attentions) + number if number < 0 else number - 1
    kinds = {"mean_attention", "cls_attention"} if cls else {"mean_attention"}
    return Tower(
        attentions=attentions,
        features_block=max(block, 0) if full is None else max(full),
        kinds=frozenset(kinds),
        full=None if full is None else frozenset(full),
    )
