"""FSDP: weights, gradients and optimiser of the LLM's layers are spread over the processes of a run.

Which layers these are is asked of the model, so no launch file has to name the class of its LLM's layers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn
from transformers import Trainer

from mmllm.errors import ConfigError


def layer_classes(model: Any) -> list[str]:
    """Names of the classes of the LLM's layers, each once; empty for a model without an LLM, such as a frame encoder.

    Args:
        model: a model of ours or of transformers, or a model of peft around it.
    """
    whole = getattr(model, "get_base_model", lambda: model)()
    decoder = whole.get_decoder().base_model if hasattr(whole, "get_decoder") else None
    layers = getattr(decoder, "layers", None)
    return list(dict.fromkeys(type(layer).__name__ for layer in layers)) if isinstance(layers, nn.ModuleList) else []


def frozen_parts(module: nn.Module) -> Iterator[nn.Module]:
    """The largest parts of a model that have weights, and train none of them."""
    trained = [weight.requires_grad for weight in module.parameters()]
    if trained and not any(trained):
        yield module
    elif trained:
        for child in module.children():
            yield from frozen_parts(child)


def spread_layers(trainer: Trainer, whole: Sequence[nn.Module] = ()) -> None:
    """Tells FSDP which layers of the trainer's model it spreads; does nothing in a run without FSDP.

    Args:
        trainer: before it trains.
        whole: parts that every process keeps whole, for they are used outside of the model's forward pass.

    Raises:
        ConfigError: if FSDP was asked for and accelerate does not use it, as on a machine without a GPU; if the model
            has adapters; or if a launch file names a class of layers that the model does not have.
    """
    from accelerate.utils import DistributedType

    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if trainer.accelerator.distributed_type != DistributedType.FSDP:
        if plugin is not None or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
            raise ConfigError(
                f"FSDP was asked for, and accelerate runs {trainer.accelerator.distributed_type.value} in "
                f"{trainer.accelerator.num_processes} processes instead: it needs a GPU for each of several processes; "
                "without, take mmllm/train/launch/cpu.yaml"
            )
        return
    assert plugin is not None
    if hasattr(trainer.model, "get_base_model"):
        raise ConfigError(
            "FSDP trains whole weights, for peft's trained time tokens and the LM head share a weight that cannot be "
            "spread twice: set lora_rank = 0, or take mmllm/train/launch/ddp.yaml for adapters"
        )
    if whole:
        plugin.ignored_modules = list(whole)
    named = plugin.transformer_cls_names_to_wrap
    if not named:
        plugin.transformer_cls_names_to_wrap = layer_classes(trainer.model)
        return
    missing = set(named) - {type(module).__name__ for module in trainer.model.modules()}
    if missing:
        raise ConfigError(
            f"fsdp_transformer_layer_cls_to_wrap: {', '.join(sorted(missing))}: the model has no such layers; leave it "
            f"out, then FSDP spreads its own: {', '.join(layer_classes(trainer.model)) or 'none'}"
        )
