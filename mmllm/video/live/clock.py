"""The seconds of a stream that goes on: from its first frame on, across gaps, restarts and clocks that fall back."""

from __future__ import annotations

from dataclasses import dataclass

GAP_S = 2.0
"""Frames that are further apart have a gap between them."""


@dataclass(frozen=True, kw_only=True)
class Gap:
    """A part of a stream without frames."""

    start_s: float
    """The last frame before it."""
    end_s: float
    """The first frame after it."""
    measured: bool
    """Whether the stream's own clock says so. If not, it began anew, and the wall clock says how long it was away."""


class StreamClock:
    """Seconds since a stream's first frame, which only ascend.

    Args:
        gap_s: frames that are further apart have a gap between them.
    """

    def __init__(self, gap_s: float = GAP_S) -> None:
        self.gap_s = gap_s
        self._offset_s: float | None = None
        self._last_s = self._step_s = 0.0
        self._arrived_s: float | None = None
        self._anew = False

    def begin_anew(self) -> None:
        """The next frame is the first of another container, whose clock may be another one."""
        self._anew = self._offset_s is not None

    def read(self, stamp_s: float, now_s: float | None = None) -> tuple[float, Gap | None]:
        """When a frame is shown, and the gap before it, if there is one.

        Args:
            stamp_s: the frame's time on the source's own clock.
            now_s: the wall clock, if frames come as they are recorded.
        """
        waited_s = now_s - self._arrived_s if now_s is not None and self._arrived_s is not None else 0.0
        self._arrived_s = now_s
        if self._offset_s is None:
            self._offset_s = -stamp_s
            return 0.0, None
        time_s = stamp_s + self._offset_s
        ahead_s = time_s - self._last_s
        measured = ahead_s > 0 and not (self._anew and abs(ahead_s - waited_s) > self.gap_s)
        self._anew = False
        if not measured:
            time_s = self._last_s + max(waited_s, self._step_s, 1e-3)
            self._offset_s = time_s - stamp_s
        gap = None
        if time_s - self._last_s > self.gap_s:
            gap = Gap(start_s=self._last_s, end_s=time_s, measured=measured)
        else:
            self._step_s = time_s - self._last_s
        self._last_s = time_s
        return time_s, gap


class Ticks:
    """Which frames of a stream are taken: the first one at or behind each tick of a rate.

    Args:
        rate: ticks a second.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._last = -1

    def take(self, time_s: float) -> bool:
        """Whether the frame that is shown then is taken; times must ascend."""
        tick = int(time_s * self.rate + 1e-6)
        if tick <= self._last:
            return False
        self._last = tick
        return True
