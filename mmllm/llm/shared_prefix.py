"""A cache layer whose rows share the keys of their beginning: they are held once, and read once for all rows.

    row 0   shared prefix | own keys        all queries attend to the prefix in one product, and each row's to its own
    row 1   shared prefix | own keys        keys; both are put together (`mmllm.llm.merging`)

A growing cache would copy the prefix for every row, and once more at every step.

B rows, G key heads, R query heads of a key head, N new positions, K own keys, P positions of the prefix, D head width
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from mmllm.llm.merging import Attended, attend, merged

SHARED = "shared_prefix"
"""Name of the argument by which the harness gives an attention its layer."""


class SharedPrefixLayer(DynamicLayer):
    """Keys and values of one layer behind those of a prefix (1 G P D each), which are not changed."""

    keys: Tensor
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.prefix_keys, self.prefix_values = keys, values
        self.waits = False
        """Whether new keys have come, and no attention has read them yet."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The own keys and values (B G K D), the new ones at the end; `attention` adds the prefix."""
        self.waits = True
        return super().update(key_states, value_states, *args, **kwargs)

    def get_seq_length(self) -> int:
        """Positions of a row."""
        return self.prefix_keys.shape[2] + super().get_seq_length()

    def attention(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None
    ) -> Tensor:
        """B N H D: the output of an attention.

        Args:
            query: B (G R) N D.
            key, value: B G K D. The own keys, with the new ones.
            mask: B 1 N (P+K), additive or bool; None for a causal one.
            scaling: of the logits; as usual if None.
        """
        self.waits = False
        rows, _, new, width = query.shape
        heads, before, own = key.shape[1], self.prefix_keys.shape[2], key.shape[2]
        scaling = width**-0.5 if scaling is None else scaling
        grouped = rearrange(query, "b (g r) n d -> b g (r n) d", g=heads)
        together = rearrange(grouped, "b g q d -> 1 g (b q) d")
        shared = attend(together, self.prefix_keys, self.prefix_values, None, scaling)
        first = Attended(*(rearrange(part, "1 g (b q) d -> b g q d", b=rows) for part in shared))
        second = attend(grouped, key, value, _own_mask(mask, query, new, own, before, heads), scaling)
        out = merged(first, second).out
        return rearrange(out, "b g (r n) d -> b n (g r) d", n=new)


def _own_mask(mask: Tensor | None, query: Tensor, new: int, own: int, before: int, heads: int) -> Tensor | None:
    """bool, B 1 (R N) K: which own keys a query sees; None for all."""
    if mask is None:
        if new == 1:
            return None
        visible = torch.ones(new, own, dtype=torch.bool, device=query.device).tril(own - new)[None, None]
    else:
        visible = mask[..., before:] if mask.dtype == torch.bool else mask[..., before:] == 0
    return visible.repeat(1, 1, query.shape[1] // heads, 1)
