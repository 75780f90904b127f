"""A cache layer with room for the words of an answer: a new word is written behind the others, not into a copy of all.

B rows, G key heads, K keys, N new positions, D head width
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer


class RoomyLayer(DynamicLayer):
    """Keys and values (B G K D) at the beginning of larger tensors.

    Args:
        room: positions for which room is made whenever there is none left.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self._larger: list[Tensor] = []
        """Keys and values with room behind them; empty before the first update."""

    @classmethod
    def behind(cls, layer: DynamicLayer, room: int) -> RoomyLayer:
        """A layer that goes on from another one, whose tensors are not written into."""
        new = cls(room)
        if layer.is_initialized:
            assert layer.keys is not None
            assert layer.values is not None
            new.lazy_initialization(layer.keys, layer.values)
            new.keys, new.values = layer.keys, layer.values
        return new

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keys and values (B G K D), the new ones (B G N D) at the end."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before, added = self.get_seq_length(), (key_states, value_states)
        after = before + key_states.shape[2]
        if not self._larger or self._larger[0].shape[2] < after:
            self._make_room(before, added)
        for whole, new in zip(self._larger, added, strict=True):
            whole[:, :, before:after] = new
        self.keys, self.values = (whole[:, :, :after] for whole in self._larger)
        return self.keys, self.values

    def _make_room(self, before: int, added: tuple[Tensor, Tensor]) -> None:
        """Larger tensors with the first `before` positions in them."""
        stored, self._larger = (self.keys, self.values), []
        for old, new in zip(stored, added, strict=True):
            rows, heads, count, width = new.shape
            larger = new.new_empty(rows, heads, before + count + self.room, width)
            if before:
                larger[:, :, :before] = old
            self._larger.append(larger)


def with_room(cache: DynamicCache, room: int) -> DynamicCache:
    """The cache, in whose plain layers so many further positions are added without copies of the others."""
    cache.layers = [RoomyLayer.behind(layer, room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    cache.layer_class_to_replicate = None if cache.layers else partial(RoomyLayer, room)  # made in the first pass
    return cache
