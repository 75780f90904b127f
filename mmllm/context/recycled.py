"""Recycled Attention: now and then a step reads all keys, the steps between read what it attended to (2411.05787).

    step 0: all keys, remembers the top_k of its attention | steps 1..S-1: these and everything newer | step S: all ...

The cache stays whole, and a prompt is read densely.

B rows, N new positions, H query heads, G key heads, K keys, D head width
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from einops import reduce
from torch import Tensor
from torch.nn.functional import cosine_similarity

from mmllm.context.budgets import Budget, counts_of, require_budget
from mmllm.context.choosing import SelectingPolicy, chosen_keys, last_row, note_refreshes
from mmllm.context.keeping import best_keys
from mmllm.fields import require
from mmllm.llm.values import AttentionView, GatheredKeys
from mmllm.registry import register


@dataclass(frozen=True, kw_only=True)
class RecycledConfig:
    """The paper's own numbers are not known to us; these are ours."""

    stride: int = 10
    """S: every so many tokens a step reads all keys; 1 for every step."""
    top_k: Budget = 0.125
    """Keys that are remembered, for each key head: a count, or a share of the prompt."""
    bound: float = -1.0
    """Cosine of the query with that of the last dense step below which a step reads all keys as well; -1 never."""

    def __post_init__(self) -> None:
        require(self.stride >= 1, self, "stride", "at least 1")
        require_budget(self, "top_k")
        require(-1 <= self.bound <= 1, self, "bound", "from -1 to 1")


def remembered(received: Tensor, groups: int, valid: Tensor, count: Tensor) -> Tensor:
    """bool, B G K: the keys that a dense step attended to most, for each key head.

    Args:
        received: float, B H K. Attention of the step's query to each key.
        groups: G.
        valid: bool, B (1 or G) K. False at padding.
        count: int64, B. How many keys each row remembers.
    """
    mean = reduce(received, "b (g r) k -> b g k", "mean", g=groups)
    return best_keys(mean, valid.expand_as(mean), count)


@register("context", "recycled", config=RecycledConfig)
class Recycled(SelectingPolicy):
    """Recycled Attention: between dense steps, a token reads what the last of them attended to, and all newer keys."""

    heads_apart = True

    def __init__(self, config: RecycledConfig) -> None:
        self.config = config

    @property
    def takes_back(self) -> bool:
        """False: what the last of several positions attends to is remembered."""
        return False

    def select(self, view: AttentionView) -> GatheredKeys | None:
        """What rows without a dense step remember, and everything newer; None where all rows read everything."""
        dense = self._dense(view)
        if bool(dense.all()):
            return None
        seen = ~view.by_key["forgotten"] | dense[:, None, None]
        return chosen_keys(seen, view.valid)

    def attention_rows(self, view: AttentionView) -> Mapping[str, Tensor] | None:
        """The last row of a dense step."""
        dense = self._dense(view).float()
        if self.config.stride == 1 or not bool(dense.any()):
            return None
        return {"last": dense.unsqueeze(-1) * last_row(view)}

    def evict(self, view: AttentionView) -> None:
        """Evicts nothing: after a dense step, remembers its query and what it attended to."""
        state, dense = view.state, self._dense(view)
        query = _last_query(view)
        if view.phase != "token":
            state["count"] = counts_of(self.config.top_k, view.valid)
        if view.received:
            forgotten = ~remembered(view.received["last"], view.keys.shape[1], view.valid, state["count"])
            old = view.by_key.get("forgotten", torch.zeros_like(forgotten))
            view.by_key["forgotten"] = torch.where(dense[:, None, None], forgotten, old)
            state["query"] = torch.where(dense[:, None], query, state.get("query", query))
            note_refreshes(view, dense)
        state["step"] = torch.where(dense, 1, state["step"] + 1) if "step" in state else dense.long()

    def _dense(self, view: AttentionView) -> Tensor:
        """bool, B: the rows that read all keys in this step."""
        state, rows = view.state, len(view.query)
        if view.phase != "token" or "forgotten" not in view.by_key:
            return torch.ones(rows, dtype=torch.bool, device=view.query.device)
        due = state["step"] >= self.config.stride
        if self.config.bound == -1:
            return due
        query = _last_query(view)
        return due | (cosine_similarity(query, state["query"], dim=-1) < self.config.bound)


def _last_query(view: AttentionView) -> Tensor:
    """float32, B (H D): the last real query of each row."""
    return torch.einsum("bhnd,bn->bhd", view.query.float(), last_row(view).float()).flatten(1)
