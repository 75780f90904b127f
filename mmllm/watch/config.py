"""How a stream is watched: what is remembered of it, how often it is asked about, when an event counts as seen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from mmllm.fields import require
from mmllm.video.live.clock import GAP_S

MEMORIES = ("window", "cache")
ANSWERS = 4
"""Among so many of the last answers those that agree are looked for; by default all of them have to agree."""


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """Settings of `mmllm watch`. All seconds are seconds of the stream."""

    memory: Literal["window", "cache"] = "window"
    """window: the last seconds are a video of their own, about which the model is asked anew each time; works with
    every model. cache: the LLM reads each frame once and keeps the last ones in its cache; for models that read the
    time of each frame as text."""
    rate: float = 2.0
    """Frames a second that are looked at."""
    window_s: float | None = None
    """Seconds that are remembered; None for as many frames as the model samples from a video."""
    every_s: float = 0.5
    """The model is asked each time that so many seconds have come."""
    settle_s: float = 0.6
    """An event has ended when it is over for so long: until then its end may still move."""
    late_s: float = 2.0
    """An event is reported at most so long after its end; one that is found later is not."""
    agree: int | None = None
    """So many of the last answers have to name an event before it is reported, or to say that it goes on. None for 4,
    or for as many as are given within `late_s` if that is fewer."""
    gap_s: float | None = None
    """Frames that are further apart have a gap between them: what was remembered is dropped, the clock goes on. None
    for 2 s, or three frames at the rate if that is longer."""

    def __post_init__(self) -> None:
        require(self.memory in MEMORIES, self, "memory", f"one of {', '.join(MEMORIES)}")
        for name in ("rate", "every_s", "late_s"):
            value = getattr(self, name)
            require(math.isfinite(value) and value > 0, self, name, "a positive number")
        if self.gap_s is None:
            object.__setattr__(self, "gap_s", max(GAP_S, 3 / self.rate))
        require(self.rate <= 60, self, "rate", "at most 60 frames a second")
        window = self.window_s
        require(
            window is None or (math.isfinite(window) and window * self.rate >= 4), self, "window_s", "4 frames long"
        )
        require(0 <= self.settle_s < self.late_s, self, "settle_s", f"from 0 to below late_s = {self.late_s:g}")
        if self.agree is None:
            object.__setattr__(self, "agree", max(1, min(ANSWERS, 1 + int(self.late_s / self.every_s))))
        assert self.agree is not None
        require(1 <= self.agree <= 20, self, "agree", "from 1 to 20")
        least_s = self.late_s - self.settle_s
        require(self.every_s < least_s, self, "every_s", f"below {least_s:g}, or ends would be missed")
        assert self.gap_s is not None
        longer = math.isfinite(self.gap_s) and self.gap_s >= 1.5 / self.rate
        require(longer, self, "gap_s", "longer than the time between two frames")

    def frames(self, sampled: int) -> int:
        """How many frames are remembered.

        Args:
            sampled: how many the model samples from a video.
        """
        return sampled if self.window_s is None else max(4, round(self.window_s * self.rate))
