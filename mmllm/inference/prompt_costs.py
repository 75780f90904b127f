"""What an LLM reads of prompts, counted layer by layer while it is asked: also what stages inside it leave of them.

B rows, N positions
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from mmllm.errors import ConfigError
from mmllm.inference.costs import prefill_flops


@dataclass
class ReadPrompts:
    """The passes in which an LLM has read prompts. Passes of one position, which are words of an answer, are none."""

    passes: list[tuple[int, list[int]]] = field(default_factory=list)
    """Of each pass its rows, and the positions on which each layer has worked, padding included."""
    reading: bool = False
    """Whether the pass that is under way reads a prompt."""

    @property
    def tokens(self) -> float:
        """Positions of all rows, on average over the layers."""
        return sum(rows * sum(layers) / len(layers) for rows, layers in self.passes)

    def operations(self, text_config: Any) -> float:
        """Floating point operations of all rows, as `prefill_flops` counts them.

        Raises:
            ConfigError: for an LLM of experts, of which each position goes through a few only.
        """
        if experts(text_config):
            raise ConfigError("the operations of an LLM of experts are not counted: count tokens")
        return sum(rows * prefill_flops(text_config, layers) for rows, layers in self.passes)


def experts(text_config: Any) -> bool:
    """Whether the layers of an LLM have experts."""
    return any(getattr(text_config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts"))


@contextmanager
def prompts_read(decoder: nn.Module) -> Iterator[ReadPrompts]:
    """Counts what the layers of a decoder (an LLM without its head) read within the block.

    Raises:
        ConfigError: if the decoder has no list of layers.
    """
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ConfigError(f"{type(decoder).__name__} has no list of layers: what it reads cannot be counted")
    read = ReadPrompts()
    # called after a layer, with what it has really got: stages take positions away right before it
    hooks = [
        layer.register_forward_hook(functools.partial(_count, read, number), with_kwargs=True)
        for number, layer in enumerate(layers)
    ]
    try:
        yield read
    finally:
        for hook in hooks:
            hook.remove()


def _count(
    read: ReadPrompts, layer: int, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _output: Any
) -> None:
    """Notes the positions (B N) on which a layer has worked."""
    rows, positions = (args[0] if args else kwargs["hidden_states"]).shape[:2]
    if layer == 0:
        read.reading = positions > 1
        if read.reading:
            read.passes.append((rows, []))
    if read.reading:
        read.passes[-1][1].append(positions)
