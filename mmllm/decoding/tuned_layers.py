"""Layers of a model that were trained further for another way of decoding. The model itself stays as it is.

Embeddings, visual parts and LM head are the model's own. The layers are copies, which a second model shares its other
weights with.

B rows, P positions, N new positions, D width
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from mmllm.decoding.beside_target import WithTrainedDraft
from mmllm.decoding.drafter import OWN
from mmllm.decoding.reading import CachedReader
from mmllm.decoding.trained_draft import TrainedDraft, text_decoder
from mmllm.errors import ConfigError
from mmllm.llm.cache import CACHE
from mmllm.llm.harness import decoder_layers
from mmllm.llm.layers import with_layers


class TunedLayers(TrainedDraft):
    """Copies of a model's layers and of its final norm.

    Args:
        config: of the draft.
        model: whose layers are copied.
    """

    def __init__(self, config: Any, *, model: Any) -> None:
        super().__init__()
        decoder = text_decoder(model)
        self.config = config
        self.layers = nn.ModuleList(copy.deepcopy(layer) for layer in decoder_layers(decoder)).requires_grad_(True)
        self.norm = copy.deepcopy(decoder.norm).requires_grad_(True)

    def check(self, model: Any) -> None:
        """Refuses a target with another number of layers.

        Raises:
            ConfigError: naming both.
        """
        own = len(decoder_layers(text_decoder(model)))
        if own != len(self.layers):
            raise ConfigError(f"draft {self.registered_name}: it has {len(self.layers)} layers and the model {own}")

    def model_of(self, model: Any) -> Any:
        """A model like the target, with these layers in place of its own."""
        return with_layers(model, text_decoder(model), list(self.layers), range(len(self.layers)), norm=self.norm)


class TunedDecoding(WithTrainedDraft):
    """A method that writes with the target's layers as they were trained further, or with its own (`draft=own`). It has
    to write `write`."""

    hosted = False

    def trained_for(self, model: Any) -> Any:
        """The trained draft of a target; None for the target's own layers."""
        return None if self.config.draft == OWN and self._given is None else self.draft_for(model)

    def read_prompt(self, model: Any, input_ids: Tensor, inputs: dict[str, Any]) -> tuple[CachedReader, Tensor]:
        """A reader with the trained layers.

        Raises:
            ConfigError: for a cache with what other weights have read.
        """
        if (draft := self.trained_for(model)) is None:
            return super().read_prompt(model, input_ids, inputs)
        refuse_read(self.registered_name, inputs)
        return CachedReader.after_prompt(draft.model_of(model), input_ids, inputs)


def refuse_read(name: str, inputs: dict[str, Any]) -> None:
    """Refuses a cache with what other weights have read.

    Raises:
        ConfigError: naming how much that is.
    """
    if read := inputs[CACHE].get_seq_length():
        raise ConfigError(f"decoding {name}: {CACHE} holds {read} positions that other weights have read: give none")


@contextlib.contextmanager
def outputs_of(layers: Sequence[nn.Module], cache: Any = None) -> Iterator[list[Tensor]]:
    """While it is open, the list that it gives holds the outputs (B N D) of these layers in the last pass, in order.

    Args:
        layers: in the order in which they run.
        cache: of the passes; those with another one are not noted.
    """
    outputs: list[Tensor] = []

    def hook(module: Any, _args: Any, kwargs: Any, output: Tensor) -> None:
        if kwargs.get(CACHE) is cache:
            if module is layers[0]:
                outputs.clear()
            outputs.append(output)

    handles = [layer.register_forward_hook(hook, with_kwargs=True) for layer in layers]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
