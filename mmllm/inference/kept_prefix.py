"""Where an encoded video keeps the LLM's cache of itself between questions."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from torch import nn

from mmllm.llm.prefix import Prefix


@dataclass(eq=False)
class PrefixSlot:
    """The beginning of the prompts about a video, as one LLM has read it; empty until a question has been asked."""

    kept: Prefix | None = None
    """The last prefix."""
    reader: weakref.ref[nn.Module] | None = None
    """The LLM that has read it."""
    state: tuple[object, ...] = ()
    """How often its weights had been written to, and their types and devices."""

    def of(self, model: nn.Module) -> Prefix | None:
        """What this LLM has read with the weights that it has now; None if it has read nothing."""
        is_reader = self.reader is not None and self.reader() is model
        return self.kept if is_reader and self.state == _state(model) else None

    def put(self, model: nn.Module, prefix: Prefix) -> None:
        """Keeps what an LLM has read, in place of what was kept before."""
        self.kept, self.reader, self.state = prefix, weakref.ref(model), _state(model)

    def clear(self) -> None:
        """Keeps nothing any more."""
        self.kept = self.reader = None


def grouped(keys: Iterable[Hashable]) -> list[list[int]]:
    """The numbers of the keys, those of equal keys together."""
    groups: dict[Hashable, list[int]] = {}
    for number, key in enumerate(keys):
        groups.setdefault(key, []).append(number)
    return list(groups.values())


def _state(model: nn.Module) -> tuple[object, ...]:
    """What changes when weights are written to, converted or moved."""
    weights = list(model.parameters())
    written = sum(0 if weight.is_inference() else weight._version for weight in weights)
    return written, frozenset((weight.dtype, weight.device) for weight in weights)
