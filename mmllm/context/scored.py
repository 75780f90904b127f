"""Policies that add up, pass by pass, what each key has received: who stays, and what the released masks hide.

B rows, N new positions, H query heads, G key heads, K keys
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from einops import reduce, repeat
from torch import Tensor

from mmllm.context.evicting import EvictingPolicy
from mmllm.context.keeping import best_keys, heavy_and_recent
from mmllm.llm.values import AttentionView, KeptKeys, Reweighed


class ScoredPolicy(EvictingPolicy):
    """Heavy keys by a score that adds up, and the most recent ones.

    With `masks`, it does not evict but hides keys from the next pass, by the rule of released code that simulates
    eviction so. The cache then stays as large as it is.
    """

    heads_apart = True
    masks: bool = False
    loses: bool = False
    """With `masks`: whether a key that was hidden once never returns."""
    sees_border: bool = False
    """With `masks`: whether the key between the heavy and the recent ones is seen."""
    none_recent_is_all: bool = True
    """With `masks`: whether a recent count of 0 leaves every key visible."""
    none_recent_hides_new: bool = False
    """With `masks`: whether a recent count of 0 hides the key of the next token from this token."""

    def counts(self, view: AttentionView, free: Tensor) -> tuple[Tensor, Tensor]:
        """int64, B each: how many heavy and how many recent keys stay.

        Args:
            view: of an attention.
            free: bool, B G K. The keys among which is chosen.
        """
        raise NotImplementedError

    @property
    def takes_back(self) -> bool:
        """False: scores hold what every position has looked at."""
        return False

    def keys_held(self, visual: int) -> int:
        """As every evicting policy; all keys if they are only hidden."""
        return visual if self.masks else super().keys_held(visual)

    def attention_rows(self, view: AttentionView) -> Mapping[str, Tensor]:
        """All real queries."""
        return {"all": view.valid[:, 0, -view.query.shape[2] :].float()}

    def select(self, view: AttentionView) -> Tensor | None:
        """With `masks`: what the pass before has left visible, and the new keys."""
        if not self.masks or view.phase == "prompt":
            return None
        visible = view.by_key["visible"].bool() | _is_new(view)
        return repeat(visible, "b g k -> b g n k", n=view.query.shape[2])

    def reweigh(self, view: AttentionView) -> Reweighed | None:
        """With `masks`: a logit that hides a token's own key, where the coming token counts as none of the recent."""
        hides = view.state.get("hides_new")
        if hides is None or view.phase != "token" or not bool(hides.any()):
            return None
        own = hides[:, None, None, None] & _is_new(view)
        lowest = torch.finfo(view.query.dtype).min
        bias = torch.zeros(own.shape, dtype=view.query.dtype, device=own.device).masked_fill(own, lowest)
        return Reweighed(keys=view.keys, values=view.values, bias=bias)

    def evict(self, view: AttentionView) -> KeptKeys | None:
        """Adds up the scores; evicts the keys that do not stay, or notes what the next pass may see."""
        heads = view.keys.shape[1]
        score = reduce(view.received["all"], "b (g r) k -> b g k", "sum", g=heads)
        if "score" in view.by_key:
            score = score + view.by_key["score"]
        view.by_key["score"] = score
        free = self.free(view.kind, view.valid, heads)
        heavy, recent = self.counts(view, free)
        if not self.masks:
            return self.kept(view, free, heavy_and_recent(score, free, heavy, recent))
        if self.none_recent_hides_new:
            view.state["hides_new"] = (recent == 0) & (free.sum(-1).amax(-1) > heavy)
        visible = seen_next(
            score, free, heavy, recent, sees_border=self.sees_border, none_is_all=self.none_recent_is_all
        )
        if self.loses and "visible" in view.by_key:
            visible = visible & (view.by_key["visible"].bool() | _is_new(view))
        stays = visible if self.loses else visible | newest(free, recent)
        view.by_key["score"] = score.masked_fill(free & ~stays, 0.0)
        view.by_key["visible"] = (visible | (view.valid.expand_as(free) & ~free)).float()
        return None


def _is_new(view: AttentionView) -> Tensor:
    """bool, K: True at the keys that this pass has added."""
    count = view.keys.shape[2]
    return torch.arange(count, device=view.keys.device) >= count - view.query.shape[2]


def newest(free: Tensor, count: Tensor) -> Tensor:
    """bool, B G K: the last `count` (int64, B) of the free keys (bool, B G K); all of them for a count of 0.

    The released slice `[-count:]` reads so.
    """
    behind = free.flip(-1).cumsum(-1).flip(-1)
    count = count[:, None, None]
    return free & ((behind <= count) | (count == 0))


def seen_next(
    score: Tensor,
    free: Tensor,
    heavy: Tensor,
    recent: Tensor,
    *,
    sees_border: bool = False,
    none_is_all: bool = True,
) -> Tensor:
    """bool, B G K: the free keys that the next token sees, by the masks of released code.

    The coming token counts as recent, so only `recent` - 1 keys do. The heavy ones are among those before the last
    `recent`. So the key between the two sits out. Nothing is hidden if all keys fit.

    Args:
        score: float32, B G K.
        free: bool, B G K.
        heavy, recent: int64, B.
        sees_border: let the key between the two be seen.
        none_is_all: hide nothing either where `recent` is 0.
    """
    behind = free.flip(-1).cumsum(-1).flip(-1)  # 1 for the newest
    many, few = recent[:, None, None], (heavy + recent)[:, None, None]
    seen = (free & (behind < many + (sees_border & (many > 0)))) | best_keys(score, free & (behind > many), heavy)
    everything = (free.sum(-1, keepdim=True) <= few) | ((many == 0) & none_is_all)
    return torch.where(everything, free, seen)
