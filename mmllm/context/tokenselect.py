"""TokenSelect: each step reads the keys that its query ranks highest, one list for all heads (arXiv 2411.02886).

    keys: [sinks | middle: the top_k by the sum over heads of softmax(q . k) | local], the cache stays whole

A list is used again in its layer while the query points where it pointed when the list was made.

B rows, N new positions, H query heads, G key heads, K keys, D head width
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import cosine_similarity, max_pool1d

from mmllm.context.choosing import SelectingPolicy, best_of_rows, chosen_keys, logits_of, note_refreshes
from mmllm.fields import require
from mmllm.llm.values import AttentionView, GatheredKeys
from mmllm.registry import register

_TRIFLE = 2.0**-26
"""Of a key's own score, which is at most that of its window: less than two float32 numbers differ.

Raised scores are equal by construction, and the release leaves open which of them comes first. The earlier position, as
for all other ties, does not give the release's indices; the key that was highest itself does. So equal raised scores
are ordered by the keys' own scores, and only then by position.
"""

Scores = Literal["released", "scaled"]


@dataclass(frozen=True, kw_only=True)
class TokenSelectConfig:
    """The defaults are the published ones."""

    sinks: int = 128
    """First positions that are always read."""
    local: int = 512
    """Last positions that are always read, with the new one."""
    top_k: int = 2048
    """How many positions between them are read."""
    pool: int = 0
    """Width of the window in which scores are raised to the highest; 0 for none."""
    threshold: float = 0.9
    """Cosine of the query with that of the last list from which the list is used again; above 1 never."""
    scores: Scores = "released"
    """Logits as released, unscaled in bfloat16, or scaled in float32."""

    def __post_init__(self) -> None:
        require(self.sinks >= 0, self, "sinks", "0 or more")
        require(self.local >= 1, self, "local", "at least 1: the new position")
        require(self.top_k >= 1, self, "top_k", "at least 1")
        require(self.pool == 0 or (self.pool % 2 == 1 and self.pool > 0), self, "pool", "0, or an odd width")
        require(self.threshold >= -1, self, "threshold", "at least -1")


def token_scores(query: Tensor, keys: Tensor, among: Tensor, *, scaling: float | None = None, pool: int = 0) -> Tensor:
    """float64, B K: the sum over heads of the attention of a query to some keys only; -inf at all others.

    Where scores are raised, several keys have the score of their window's highest: that one is a trifle higher.

    Args:
        query: B H D, the mean over the rows of a pass.
        keys: B G K D.
        among: bool, B K. The keys that are ranked.
        scaling: of the logits; None for the released form, unscaled logits in bfloat16.
        pool: width of the window in which scores are raised to the highest; 0 for none.
    """
    logits = logits_of(query.unsqueeze(2), keys)[:, :, 0]  # B H K
    logits = logits.bfloat16() if scaling is None else logits * scaling
    hidden = ~among
    own = logits.masked_fill(hidden.unsqueeze(1), -torch.inf).softmax(-1).sum(1).double()
    scores = own.masked_fill(hidden, -torch.inf)
    if pool:
        highest = max_pool1d(scores.unsqueeze(1), pool, stride=1, padding=pool // 2).squeeze(1)
        scores = highest + own * _TRIFLE
    return scores.masked_fill(hidden, -torch.inf)


@register("context", "tokenselect", config=TokenSelectConfig)
class TokenSelect(SelectingPolicy):
    """TokenSelect: each step reads the keys that its query ranks highest, one list for all heads."""

    def __init__(self, config: TokenSelectConfig) -> None:
        self.config = config

    def select(self, view: AttentionView) -> GatheredKeys | None:
        """The first, the best and the last keys; None where they are all."""
        if view.phase != "token":
            return None
        config, valid = self.config, view.valid[:, 0]
        length = valid.sum(-1, keepdim=True)
        short = length <= config.sinks + config.top_k + config.local  # B 1
        if bool(short.all()):
            return None
        number = valid.cumsum(-1) - 1
        middle = valid & (number >= config.sinks) & (number < length - config.local)
        chosen = valid & (self._listed(view, middle, ~short) | ~middle | short)
        return chosen_keys(chosen.unsqueeze(1), view.valid)

    def _listed(self, view: AttentionView, middle: Tensor, long: Tensor) -> Tensor:
        """bool, B K: the list of each long row (bool, B 1), made anew where its query has turned away."""
        config = self.config
        query = view.query.mean(2)
        flat = rearrange(query, "b h d -> b (h d)").float()
        # a short row has no list, and a query that is like no other
        asked = view.state.get("query", torch.full_like(flat, torch.nan))
        unlisted = view.by_key.get("unlisted", torch.zeros_like(middle).unsqueeze(1))[:, 0]
        again = cosine_similarity(flat, asked, dim=-1).unsqueeze(-1) >= config.threshold
        stale = ~again & long
        if bool(stale.any()):
            scaling = None if config.scores == "released" else view.scaling
            scores = token_scores(query, view.keys, middle, scaling=scaling, pool=config.pool)
            listed = best_of_rows(scores, middle, torch.full_like(long[:, 0], config.top_k, dtype=torch.long))
            unlisted = torch.where(stale, ~listed, unlisted)
            view.state["query"] = torch.where(stale, flat, asked)
            view.by_key["unlisted"] = unlisted.unsqueeze(1)
            note_refreshes(view, stale)
        return ~unlisted
