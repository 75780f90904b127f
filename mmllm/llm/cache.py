"""A cache layer that knows where in the row its keys stand, so that keys can be removed from it.

transformers counts positions by what a cache has seen; here `get_seq_length` goes on counting removed keys.

B rows, G key heads, K keys, N new keys, D head width
"""

from __future__ import annotations

from typing import Any

import torch
from einops import repeat
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from mmllm.errors import ConfigError, InputError
from mmllm.llm.values import KeptKeys, LlmPass


class RecordLayer(DynamicLayer):
    """Keys and values of one layer, with the position of each and what stages remember of them."""

    keys: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.position: Tensor = torch.empty(0)
        """int64, B 1 K; B G K once a stage has evicted keys of single heads."""
        self.valid: Tensor = torch.empty(0)
        """bool, like `position`. False at padding and filling."""
        self.seen = 0
        """How many positions of the row have been read, removed ones counted."""
        self.passes = 0
        """How many passes have brought keys."""
        self.is_whole = True
        """Whether it holds every position that has been read, in order: then a mask of transformers fits it."""
        self._states: dict[int, dict[str, Tensor]] = {}
        self._incoming: tuple[Tensor, Tensor, int] | None = None

    def announce(self, position: Tensor, valid: Tensor, read: int, *, whole: bool = True) -> None:
        """Says what the next keys are.

        Args:
            position: int64, B N. Where in the row they stand.
            valid: bool, B N.
            read: how many positions of the row the pass has read, those removed before this layer counted.
            whole: False if some were removed, or stand in another order.
        """
        self.is_whole = self.is_whole and whole
        self._incoming = position, valid, read

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """All keys and values (B G K D), the new ones behind the others."""
        assert self._incoming is not None, "the harness announces every pass"
        position, valid = (part.unsqueeze(1) for part in self._incoming[:2])
        self.seen, self.passes, self._incoming = self.seen + self._incoming[2], self.passes + 1, None
        if self.passes > 1:
            heads = self.position.shape[1]
            position = torch.cat([self.position, position.expand(-1, heads, -1)], dim=-1)
            valid = torch.cat([self.valid, valid.expand(-1, heads, -1)], dim=-1)
        self.position, self.valid = position, valid
        return super().update(key_states, value_states, *args, **kwargs)

    def state_of(self, stage: int) -> dict[str, Tensor]:
        """What the stage of that number remembers of this layer; tensors with B as their first axis."""
        return self._states.setdefault(stage, {})

    def keep(self, kept: KeptKeys) -> None:
        """Removes all keys but some.

        Raises:
            InputError: if they are not given for every row, and for every head or for all alike.
        """
        rows, heads, _, width = self.keys.shape
        index = kept.index
        if index.ndim != 3 or index.shape[0] != rows or index.shape[1] not in (1, heads):
            raise InputError(f"keys that stay must be (B G K) = ({rows}, {heads}, ...), not {tuple(index.shape)}")
        position, valid = (part.expand(-1, index.shape[1], -1) for part in (self.position, self.valid))
        if position.shape[1] > index.shape[1]:
            index = index.expand(-1, position.shape[1], -1)
        self.position, self.valid = position.gather(-1, index), valid.gather(-1, index)
        if kept.valid is not None:
            self.valid = self.valid & kept.valid
        slots = repeat(index.expand(-1, heads, -1), "b g k -> b g k d", d=width)
        self.is_whole = False
        self.keys, self.values = self.keys.gather(2, slots), self.values.gather(2, slots)

    def get_seq_length(self) -> int:
        """How many positions have been read."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns of a mask over the stored and the new keys, and how many removed keys come before them."""
        stored = self.keys.shape[2] if self.passes else 0
        return stored + query_length, self.seen - stored

    def crop(self, tokens_to_remove: int) -> None:
        """Takes the newest positions back; older transformers give the length that remains in place of their number."""
        count = -tokens_to_remove if tokens_to_remove <= 0 else max(0, self.seen - tokens_to_remove)
        if not count or not self.passes:
            return
        if int(self.position[..., -count:].amin()) < self.seen - count:
            raise ConfigError("positions cannot be taken back from a cache of which a stage has evicted keys")
        self.position, self.valid = self.position[..., :-count], self.valid[..., :-count]
        self.keys, self.values = self.keys[:, :, :-count], self.values[:, :, :-count]
        self.seen -= count

    def reset(self) -> None:
        """Forgets everything."""
        super().reset()
        self.seen, self.passes, self.is_whole, self._states, self._incoming = 0, 0, True, {}, None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """The rows numbered `beam_idx` (int64, B)."""
        self._take(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Only the rows numbered `indices`."""
        self._take(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row `repeats` times."""
        if self.passes:
            self._take(torch.arange(len(self.keys), device=self.keys.device).repeat_interleave(repeats))

    def _take(self, rows: Tensor) -> None:
        if not self.passes:
            return
        rows = rows.to(self.keys.device)
        self.keys, self.values = self.keys[rows], self.values[rows]
        self.position, self.valid = self.position[rows], self.valid[rows]
        self._states = {
            stage: {name: value[rows] for name, value in state.items()} for stage, state in self._states.items()
        }


def pass_of(cache: Cache | None) -> LlmPass | None:
    """The prompt whose stages a cache goes on with; None for a cache without."""
    return getattr(cache, "llm_pass", None)


def adopt(cache: Cache, current: LlmPass, layers: int) -> None:
    """Lets an empty dynamic cache keep the record that stages need, and the pass that it goes on with.

    Raises:
        ConfigError: for a cache of another kind.
        InputError: for one that holds something already.
    """
    if type(cache) is not DynamicCache or cache.offloading:
        what = f"offloaded {type(cache).__name__}" if getattr(cache, "offloading", False) else type(cache).__name__
        raise ConfigError(f"stages inside the LLM need a DynamicCache, not {what}")
    if cache.get_seq_length():
        raise InputError("a cache that holds a text already cannot be given a prompt with stages inside the LLM")
    cache.layers = [RecordLayer() for _ in range(layers)]
    cache.layer_class_to_replicate = None
    cache.llm_pass = current
