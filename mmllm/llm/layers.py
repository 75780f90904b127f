"""A second model with the weights of a first one, and other layers in its decoder."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn


def with_layers(model: Any, decoder: Any, layers: Sequence[nn.Module], numbers: Sequence[int], **parts: Any) -> Any:
    """A model like another one, whose decoder has other layers. All other weights are shared; the first stays as it is.

    Args:
        model: holds the decoder.
        decoder: without LM head, such as `LlamaModel`; `model` itself or a part of it.
        layers: the new ones, in order. Each keeps its own place in the cache.
        numbers: of each, which layer of the decoder it stands for; decides its kind of attention.
        parts: other modules of the decoder, by name, such as `norm`.
    """
    path = next(name for name, module in model.named_modules() if module is decoder)
    config = copy.deepcopy(decoder.config)
    config.num_hidden_layers = len(layers)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[number] for number in numbers]
    config._attn_implementation = decoder.config._attn_implementation
    holders = [with_modules(model)]
    for name in filter(None, path.split(".")):
        holders.append(with_modules(holders[-1]._modules[name]))
        holders[-2]._modules[name] = holders[-1]
    for holder in holders:
        if holder.config is decoder.config:
            holder.config = config
    holders[-1].config = config
    holders[-1]._modules |= {"layers": nn.ModuleList(layers), **parts}
    return holders[0]


def with_modules(module: Any, **parts: Any) -> Any:
    """A module with the same weights, whose list of parts is its own, with some of them replaced."""
    other = copy.copy(module)
    other._modules = {**module._modules, **parts}
    return other
