"""StreamingLLM (arXiv 2309.17453): the first keys, into which attention sinks, and the newest ones.

The released code makes room before each pass, so that a pass sees at most `sinks` + `window` keys.

B rows, G key heads, K keys
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mmllm.context.budgets import Budget, count_of, require_budget
from mmllm.context.evicting import EvictingConfig, EvictingPolicy
from mmllm.context.keeping import first_keys, kept_keys, recent_keys
from mmllm.fields import require
from mmllm.llm.values import AttentionView, KeptKeys, RoomView
from mmllm.registry import register


@dataclass(frozen=True, kw_only=True)
class StreamingConfig(EvictingConfig):
    """Settings of `Streaming`."""

    sinks: int = 4
    """The first keys, which stay."""
    window: Budget = 512
    """The newest keys, which stay: a count, or a share of the prompt."""
    positions: Literal["absolute", "inside"] = "absolute"
    """Positions in the text, or inside the cache, as released: then a stream of any length fits the LLM."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.sinks >= 0, self, "sinks", "0 or more")
        require_budget(self, "window")


@register("context", "streaming", config=StreamingConfig)
class Streaming(EvictingPolicy):
    """StreamingLLM: the first keys and the newest ones, at positions of the text or inside the cache."""

    config: StreamingConfig

    def __init__(self, config: StreamingConfig) -> None:
        self.config = config

    def budget_of(self, free: int) -> int:
        """Sinks and the window."""
        return self.config.sinks + count_of(self.config.window, free)

    @property
    def turns_keys(self) -> bool:
        """Whether positions count what is in the cache."""
        return self.config.positions == "inside"

    def evict(self, view: AttentionView) -> KeptKeys | None:
        """Nothing: only notes how many keys the window holds, which the prompt fixes."""
        self.budgets(view, self.free(view.kind, view.valid), window=self.config.window)
        return None

    def make_room(self, view: RoomView) -> KeptKeys | None:
        """The sinks, and as many of the newest keys as leave room for those that come."""
        free = self.free(view.kind, view.valid)
        window = view.state["window"]
        valid = view.valid.expand_as(free)
        too_many = free[:, 0].sum(-1) + view.coming - self.config.sinks - window
        waits = free & (too_many < self.config.every)[:, None, None]
        stay = first_and_newest(free, self.config.sinks, window, view.coming)
        return kept_keys(stay | waits | (valid & ~free), valid)


def first_and_newest(free: Tensor, sinks: int, window: Tensor, coming: Tensor) -> Tensor:
    """bool, B G K: what stays so that, with the keys that come, there are at most `sinks` + `window`.

    Args:
        free: bool, B G K. The keys among which is chosen.
        sinks: first keys that stay.
        window: int64, B. Newest keys, with those that come.
        coming: int64, B.
    """
    fits = (free[:, 0].sum(-1) + coming <= sinks + window)[:, None, None]
    newest = recent_keys(free, (window - coming).clamp(min=0))
    return free & (fits | first_keys(free, torch.full_like(window, sinks)) | newest)
