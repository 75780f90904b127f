"""Weights that a checkpoint lacks: they are drawn as in a new model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def draw_missing(part: nn.Module, built_again: Callable[[], nn.Module]) -> None:
    """Draws the weights and buffers of a part that neither a constructor nor a checkpoint has written.

    Args:
        part: of a model.
        built_again: gives the same part with new weights; called if any are missing.
    """
    waiting = [(below, module) for below, module in part.named_modules() if _missing(module)]
    if waiting:
        drawn = built_again()
        for below, module in waiting:
            _copy_missing(drawn.get_submodule(below), module)


def _missing(module: nn.Module) -> list[tuple[str, Tensor]]:
    """The weights and buffers of a module itself that neither a constructor nor a checkpoint has written, by name."""
    if getattr(module, "_is_hf_initialized", False):
        return []
    own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    return [(name, weight) for name, weight in own if not getattr(weight, "_is_hf_initialized", False)]


@torch.no_grad()
def _copy_missing(drawn: nn.Module, module: nn.Module) -> None:
    """Copies into a module what it lacks, from the same module of a new model."""
    for name, weight in _missing(module):
        weight.copy_(getattr(drawn, name))
    module._is_hf_initialized = True  # type: ignore[assignment]
