"""A prompt's last layer computes its feed-forward part for the last position only, where only that one's logits count.

Whoever writes an answer asks for the logits behind the last position. In the last layer, keys and values of all
positions are needed, since later tokens attend to them; what the feed-forward part adds behind them is read by nobody.
The last position's state is what it was; those of the others are not to be looked at, and nobody is given them.

B rows, P positions, D width
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from mmllm.llm.cache import CACHE, pass_of

_ALONE: ContextVar[bool] = ContextVar("last position alone", default=False)
_OTHERS = ("output_hidden_states", "labels", "llm_pass")
"""Arguments of a pass that give other positions' last states to somebody."""
_DENSE = ("gate_proj", "up_proj", "down_proj")


def install(model: Any, decoder: nn.Module) -> None:
    """Makes passes over a prompt compute no more than their logits need. Once installed, nothing happens again.

    LLMs whose last layer has no usual dense feed-forward part stay as they are.

    Args:
        model: whose forward takes `logits_to_keep`: an LLM with its head, or a video LLM of transformers.
        decoder: the LLM in it, without the head.
    """
    layers = getattr(decoder, "layers", None)
    mlp: Any = getattr(layers[-1], "mlp", None) if isinstance(layers, nn.ModuleList) and len(layers) else None
    if not all(isinstance(getattr(mlp, name, None), nn.Module) for name in _DENSE):
        return
    if _last_row not in mlp._forward_pre_hooks.values():
        mlp.register_forward_pre_hook(_last_row)
    if _begin not in model._forward_pre_hooks.values():
        model.register_forward_pre_hook(_begin, with_kwargs=True)
        model.register_forward_hook(_end, always_call=True)


def _begin(model: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
    """Before a pass: whether the last position is all that is asked for. Stages inside the LLM see all of them."""
    if torch.compiler.is_compiling():
        return
    keep = kwargs.get("logits_to_keep", 0)
    others = any(kwargs.get(name) is not None and kwargs[name] is not False for name in _OTHERS)
    cache = kwargs.get(CACHE)
    inside = pass_of(cache) is not None or getattr(cache, "waiting_pass", None) is not None
    _ALONE.set(
        isinstance(keep, int)
        and keep == 1
        and not (others or inside or model.training or torch.is_grad_enabled())
        and not getattr(getattr(model, "config", None), "output_hidden_states", False)
    )


def _end(_model: nn.Module, _args: Any, _output: Any) -> None:
    """Behind a pass, also one that failed."""
    if not torch.compiler.is_compiling():
        _ALONE.set(False)


def _last_row(_mlp: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """B P D -> B 1 D, which the layer adds to all positions; only the last is right, and read."""
    if torch.compiler.is_compiling() or not _ALONE.get():
        return None
    hidden: Tensor = args[0]
    return (hidden[:, -1:], *args[1:])
