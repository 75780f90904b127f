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
from mmllm.llm.kinds import PositionKind
from mmllm.llm.values import AttentionView, KeptKeys, RoomView
from mmllm.registry import register


@dataclass(frozen=True, kw_only=True)
class StreamingConfig(EvictingConfig):
    """Settings of `Streaming`."""

    sinks: int = 4
    """The first keys, which stay."""
    window: Budget = 512
    """The newest keys, which stay: a count, or a share of the prompt."""
    unit: Literal["tokens", "frames"] = "tokens"
    """What the window counts. With frames, whole ones go, each with the text before it that says its time."""
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
        """Sinks and the window; all keys if it counts frames, whose size is not known here."""
        whole = self.config.unit == "frames"
        return free if whole else self.config.sinks + count_of(self.config.window, free)

    @property
    def turns_keys(self) -> bool:
        """Whether positions count what is in the cache."""
        return self.config.positions == "inside"

    def evict(self, view: AttentionView) -> KeptKeys | None:
        """Nothing: only notes how much the window holds, which the prompt fixes."""
        counted = first_of_frames(view.kind, view.valid) if self._by_frame else self.free(view.kind, view.valid)
        self.budgets(view, counted, window=self.config.window)
        return None

    @property
    def _by_frame(self) -> bool:
        return self.config.unit == "frames"

    def make_room(self, view: RoomView) -> KeptKeys | None:
        """The sinks, and as many of the newest keys as leave room for those that come."""
        if self._by_frame:
            return self._whole_frames(view)
        free = self.free(view.kind, view.valid)
        window = view.state["window"]
        valid = view.valid.expand_as(free)
        too_many = free[:, 0].sum(-1) + view.coming - self.config.sinks - window
        waits = free & (too_many < self.config.every)[:, None, None]
        stay = first_and_newest(free, self.config.sinks, window, view.coming)
        return kept_keys(stay | waits | (valid & ~free), valid)

    def _whole_frames(self, view: RoomView) -> KeptKeys | None:
        """The sinks, all text that belongs to no frame, and the newest frames."""
        framed = view.valid & is_in_frame(view.kind)
        first = first_of_frames(view.kind, view.valid)
        behind = first.flip(-1).cumsum(-1).flip(-1) - first.long()  # frames that begin after a key
        newest = framed & (behind < view.state["window"][:, None, None])
        sinks = first_keys(framed, torch.full_like(view.coming, self.config.sinks))
        return kept_keys((view.valid & ~framed) | newest | sinks, view.valid)


def is_in_frame(kind: Tensor) -> Tensor:
    """bool, like `kind` (int64): True at visual tokens, and at the text that says when they are shown."""
    return (kind == PositionKind.VISUAL) | (kind == PositionKind.TIME)


def first_of_frames(kind: Tensor, valid: Tensor) -> Tensor:
    """bool, B G K: where a frame begins: at its time text, or at its first token if no text stands before it.

    Args:
        kind: int64, B G K.
        valid: bool, B G K.
    """
    kind = kind.masked_fill(~valid, -1)
    before = torch.nn.functional.pad(kind, (1, -1), value=-1)
    is_time, is_visual = kind == PositionKind.TIME, kind == PositionKind.VISUAL
    return (is_time & (before != PositionKind.TIME)) | (is_visual & ~is_in_frame(before))


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
