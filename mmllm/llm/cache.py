"""A cache layer that stores the position of each key, so that keys can be removed.

transformers takes the number of positions from the cache. So `get_seq_length` also counts removed keys.

B rows, G key heads, K keys, N new keys, D head width
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from einops import repeat
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from mmllm.errors import ConfigError, InputError
from mmllm.llm.rotary import Rotary
from mmllm.llm.values import KeptKeys, LlmPass

CACHE = "cache" if "cache" in {field.name for field in fields(CausalLMOutputWithPast)} else "past_key_values"
"""transformers' name of the cache, in arguments and in outputs: `cache` from version 5.24 on."""


QUANTISED = "a quantised one can be kept on disk: mmllm encode VIDEO --output clip.kv --codec kvcode"
"""What is said of caches that no stage can work with."""
_MARKS = ("position", "valid", "number", "kind", "angle")
"""What is noted of each key."""


class RecordLayer(DynamicLayer):
    """Keys and values of one layer, what is noted of each key, and the state of each stage."""

    keys: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.position: Tensor = torch.empty(0)
        """int64, B 1 K; B G K after a stage has evicted other keys in each head."""
        self.valid: Tensor = torch.empty(0)
        """bool, like `position`. False at padding and at filling, which makes rows equally long."""
        self.number: Tensor = torch.empty(0)
        """int64, like `position`. How many real positions of the row come before: the same with padding and without."""
        self.kind: Tensor = torch.empty(0)
        """int64, like `position`. A `PositionKind`."""
        self.angle: Tensor = torch.empty(0)
        """int64, like `position`. The position as which a key is rotated."""
        self.seen = 0
        """How many positions of the row have been read, with those removed since."""
        self.read: Tensor = torch.empty(0)
        """int64, B. How many real positions have been read, with those removed since."""
        self.evicted: Tensor = torch.empty(0)
        """bool, B. From which rows a stage has evicted keys."""
        self.passes = 0
        """How many passes have added keys."""
        self.is_whole = True
        """Whether it holds all positions that have been read, in order. Then a mask of transformers fits it."""
        self.turning: Rotary | None = None
        """Rotates the keys in each pass, once a stage has changed their angles: `keys` are then stored unrotated."""
        self._states: dict[int, dict[str, Tensor]] = {}
        self._by_key: dict[int, dict[str, Tensor]] = {}
        self._incoming: tuple[dict[str, Tensor], int, Tensor] | None = None

    def announce(
        self,
        position: Tensor,
        valid: Tensor,
        read: int,
        *,
        whole: bool = True,
        real: Tensor | None = None,
        **marks: Tensor | None,
    ) -> None:
        """Announces the keys that the next `update` adds.

        Args:
            position: int64, B N. Their positions in the row.
            valid: bool, B N.
            read: how many positions of the row the pass has read, with those removed before this layer.
            whole: False if some were removed, or are in another order.
            real: int64, B. How many of the positions read are no padding; those of `valid` if None.
            marks: `number`, `kind` and `angle`, int64, B N; the positions in place of those that are not given.
        """
        self.is_whole = self.is_whole and whole
        given = {name: value for name, value in marks.items() if value is not None}
        real = valid.sum(-1) if real is None else real
        self._incoming = {name: given.get(name, position) for name in _MARKS} | {"valid": valid}, read, real

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """All keys and values (B G K D), the new ones at the end."""
        assert self._incoming is not None, "the harness announces every pass"
        (marks, read, real), self._incoming = self._incoming, None
        self.read = self.read + real if self.passes else real
        self.evicted = self.evicted if self.passes else torch.zeros_like(real, dtype=torch.bool)
        self.seen, self.passes = self.seen + read, self.passes + 1
        if self.turning is not None:
            key_states = self.turning.turned(key_states, -marks["angle"].unsqueeze(1))
        for name, value in marks.items():
            value = value.unsqueeze(1)
            if self.passes > 1:
                own = getattr(self, name)
                value = torch.cat([own, value.expand(-1, own.shape[1], -1)], dim=-1)
            setattr(self, name, value)
        count = key_states.shape[2]
        self._map_by_key(lambda value: nn.functional.pad(value, (0, count)))
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        return (keys if self.turning is None else self.turning.turned(keys, self.angle)), values

    def restart_angles(self, rotary: Rotary, rows: Tensor) -> None:
        """Counts the positions of the real keys of some rows (bool, B) anew, from 0 on."""
        if self.turning is None:
            self.keys, self.turning = rotary.turned(self.keys, -self.angle), rotary
        counted = (self.valid.cumsum(-1) - 1).clamp(min=0)
        self.angle = torch.where(rows[:, None, None], counted, self.angle)

    def state_of(self, stage: int) -> dict[str, Tensor]:
        """The state of stage number `stage` in this layer: tensors with B as their first axis."""
        return self._states.setdefault(stage, {})

    def by_key_of(self, stage: int) -> dict[str, Tensor]:
        """What stage number `stage` notes of each key in this layer: tensors B G K or B 1 K, 0 for new keys."""
        return self._by_key.setdefault(stage, {})

    def stored_by_stages(self) -> list[Tensor]:
        """The tensors of all stages in this layer."""
        return [value for kept in (self._states, self._by_key) for state in kept.values() for value in state.values()]

    def _map_by_key(self, change: Callable[[Tensor], Tensor]) -> None:
        """Changes everything that stages note of each key."""
        self._by_key = {
            stage: {name: change(value) for name, value in notes.items()} for stage, notes in self._by_key.items()
        }

    def keep(self, kept: KeptKeys) -> None:
        """Removes all other keys.

        Raises:
            InputError: if `kept` does not have every row, and one head or all of them.
        """
        rows, heads, _, width = self.keys.shape
        index = kept.index
        if index.ndim != 3 or index.shape[0] != rows or index.shape[1] not in (1, heads):
            raise InputError(f"keys that stay must be (B G K) = ({rows}, {heads}, ...), not {tuple(index.shape)}")
        if self.position.shape[1] > index.shape[1]:
            index = index.expand(-1, self.position.shape[1], -1)
        before = self.valid[:, 0].sum(-1)
        for name in _MARKS:
            setattr(self, name, _gathered(getattr(self, name), index))
        self._map_by_key(lambda value: _gathered(value, index))
        if kept.valid is not None:
            self.valid = self.valid & kept.valid
        self.evicted = self.evicted | (self.valid[:, 0].sum(-1) < before)
        slots = repeat(index.expand(-1, heads, -1), "b g k -> b g k d", d=width)
        self.is_whole = False
        self.keys, self.values = self.keys.gather(2, slots), self.values.gather(2, slots)

    def get_seq_length(self) -> int:
        """How many positions have been read."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns of a mask over the stored and the new keys, and the number of removed keys."""
        stored = self.keys.shape[2] if self.passes else 0
        return stored + query_length, self.seen - stored

    def crop(self, tokens_to_remove: int) -> None:
        """Removes the newest positions: `-tokens_to_remove` of them. Older transformers give the length left."""
        count = -tokens_to_remove if tokens_to_remove <= 0 else max(0, self.seen - tokens_to_remove)
        if not count or not self.passes:
            return
        if int(self.position[..., -count:].amin()) < self.seen - count:
            raise ConfigError("the newest positions cannot be removed from a cache from which a stage has evicted keys")
        self.read = self.read - self.valid[:, 0, -count:].sum(-1)
        for name in _MARKS:
            setattr(self, name, getattr(self, name)[..., :-count])
        self._map_by_key(lambda value: value[..., :-count])
        self.keys, self.values = self.keys[:, :, :-count], self.values[:, :, :-count]
        self.seen -= count

    def reset(self) -> None:
        """Empties the cache."""
        super().reset()
        self.seen, self.passes, self.is_whole, self.turning, self._incoming = 0, 0, True, None, None
        self._states, self._by_key = {}, {}

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Replaces the rows by those with the indices `beam_idx` (int64, B)."""
        self._take(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps only the rows with these indices."""
        self._take(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every row."""
        if self.passes:
            self._take(torch.arange(len(self.keys), device=self.keys.device).repeat_interleave(repeats))

    def _take(self, rows: Tensor) -> None:
        """Replaces keys, values, notes and states by those of the given rows (int64)."""
        if not self.passes:
            return
        rows = rows.to(self.keys.device)
        for name in ("keys", "values", "read", "evicted", *_MARKS):
            setattr(self, name, getattr(self, name)[rows])
        self._map_by_key(lambda value: value[rows])
        self._states = {
            stage: {name: value[rows] for name, value in state.items()} for stage, state in self._states.items()
        }


def _gathered(values: Tensor, index: Tensor) -> Tensor:
    """Values (B G K or B 1 K) at slots B G K' or B 1 K'."""
    heads = max(values.shape[1], index.shape[1])
    return values.expand(-1, heads, -1).gather(-1, index.expand(-1, heads, -1))


def pass_of(cache: Cache | None) -> LlmPass | None:
    """The pass of the prompt that a cache was filled by; None for a cache without stages."""
    return getattr(cache, "llm_pass", None)


def adopt(cache: Cache, current: LlmPass, layers: int) -> None:
    """Prepares an empty dynamic cache for stages: layers that store positions, and the pass of the prompt.

    Raises:
        ConfigError: for a cache of another kind.
        InputError: for a cache that is not empty.
    """
    if type(cache) is not DynamicCache or cache.offloading:
        kind = f"offloaded {type(cache).__name__}" if getattr(cache, "offloading", False) else type(cache).__name__
        raise ConfigError(f"stages inside the LLM need a DynamicCache, not {kind}; {QUANTISED}")
    if cache.get_seq_length():
        raise InputError("the cache holds a text already: a prompt with stages inside the LLM needs an empty one")
    cache.layers = [RecordLayer() for _ in range(layers)]
    current.count_in(current.counts, cache.layers)
    cache.layer_class_to_replicate = None
    cache.llm_pass = current
