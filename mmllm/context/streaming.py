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
from mmllm.errors import ConfigError
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
    """The newest keys, which stay: a count, or a share of the prompt; 0 for none, beside sinks."""
    unit: Literal["tokens", "frames"] = "tokens"
    """What the window counts. With frames, whole ones go, each with the text before it that says its time, if any."""
    positions: Literal["absolute", "inside"] = "absolute"
    """Positions in the text, or inside the cache, as released: then a stream of any length fits the LLM."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.sinks >= 0, self, "sinks", "0 or more")
        require_budget(self, "window", or_none=self.sinks > 0)


@register("context", "streaming", config=StreamingConfig)
class Streaming(EvictingPolicy):
    """StreamingLLM: the first keys and the newest ones, at positions of the text or inside the cache."""

    config: StreamingConfig

    def __init__(self, config: StreamingConfig) -> None:
        self.config = config

    def budget_of(self, free: int) -> int:
        """Sinks and the window; all keys if it counts frames, whose size is not known here."""
        whole = self.config.unit == "frames"
        return free if whole else self.config.sinks + count_of(self.config.window, free, least=self._least)

    @property
    def turns_keys(self) -> bool:
        """Whether positions count what is in the cache."""
        return self.config.positions == "inside"

    def evict(self, view: AttentionView) -> KeptKeys | None:
        """Nothing: only notes how much the window holds, which the prompt fixes, and which frame a key shows.

        Raises:
            ConfigError: if the window counts frames that cannot be told from each other.
        """
        counted = self.free(view.kind, view.valid)
        if self._by_frame:
            if view.phase == "prompt":
                view.by_key["frame"] = shown_frames(view)
            counted, _ = frames_of(view.kind, view.valid, view.by_key["frame"])
        self.budgets(view, counted, least=self._least, window=self.config.window)
        return None

    @property
    def _by_frame(self) -> bool:
        return self.config.unit == "frames"

    @property
    def _least(self) -> int:
        """The least window: something must stay."""
        return 0 if self.config.sinks else 1

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
        _, newer = frames_of(view.kind, view.valid, view.by_key["frame"])
        newest = framed & (newer < view.state["window"][:, None, None])
        sinks = first_keys(framed, torch.full_like(view.coming, self.config.sinks))
        return kept_keys((view.valid & ~framed) | newest | sinks, view.valid)


def shown_frames(view: AttentionView) -> Tensor:
    """int64, B 1 K: the frame that each key of a prompt shows, counted from 1; 0 where that is not known."""
    current, position = view.current, view.position[:, 0]
    frame = current.frame if current.frameless is None else current.frame.masked_fill(current.frameless, -1)
    return (frame.gather(1, position) + 1).masked_fill(view.kind[:, 0] != PositionKind.VISUAL, 0).unsqueeze(1)


def is_in_frame(kind: Tensor) -> Tensor:
    """bool, like `kind` (int64): True at visual tokens, and at the text that says when they are shown."""
    return (kind == PositionKind.VISUAL) | (kind == PositionKind.TIME)


def frames_of(kind: Tensor, valid: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
    """The frames of a row, and how many of them are newer than that of each key.

    A frame begins at its time text. In a row without time text it is what has its number, within one video.

    Args:
        kind: int64, B G K.
        valid: bool, B G K.
        frame: int64, B G K. The frame that a visual token shows, counted from 1; 0 where that is not known.

    Returns:
        bool, B G F: True for each frame that is there. int64, B G K; meaningless where a key belongs to no frame.

    Raises:
        ConfigError: if a row has no time text, and tokens of which it is not known which frame they show.
    """
    kind = kind.masked_fill(~valid, -1)
    before = torch.nn.functional.pad(kind, (1, -1), value=-1)
    is_time, is_visual = kind == PositionKind.TIME, kind == PositionKind.VISUAL
    timed = is_time.any(-1, keepdim=True)
    if bool((is_visual & (frame == 0) & ~timed).any()):
        raise ConfigError(
            "StreamingConfig.unit = 'frames': needs prompts that say when each frame is shown, or visual tokens that "
            "show one frame each; take unit=tokens"
        )
    begins = (is_time & (before != PositionKind.TIME)) | (is_visual & ~is_in_frame(before))
    videos = (is_visual & (before != PositionKind.VISUAL)).cumsum(-1)
    number = torch.where(timed, begins.cumsum(-1), videos * (frame.max() + 1) + frame)
    number = number.masked_fill(~is_in_frame(kind), 0)
    there = torch.zeros(*number.shape[:2], int(number.max()) + 1, dtype=torch.uint8, device=number.device)
    there = there.scatter(-1, number, 1)
    there[..., 0] = 0  # no frame
    return there.bool(), (there.flip(-1).cumsum(-1).flip(-1) - there).gather(-1, number)


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
