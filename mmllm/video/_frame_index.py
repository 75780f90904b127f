"""When each frame of a stream is shown, and from which packet it must be decoded, found from the packets alone.

n frames in the order they are shown; packets are numbered in the order they are stored
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Packets:
    """The headers of the packets of one stream: one entry for each packet, in stored order."""

    pts: np.ndarray
    """int64, presentation times in units of `time_base`; NONE if the packet has none."""
    dts: np.ndarray
    """int64, decoding times in the same units; NONE if the packet has none."""
    duration: np.ndarray
    """int64, in the same units; 0 if unknown."""
    key: np.ndarray
    """bool, whether decoding can start at this packet."""
    hidden: np.ndarray
    """bool, whether the frame is decoded but never shown, because an edit list cuts it off."""
    time_base: Fraction

    def __len__(self) -> int:
        return len(self.pts)


NONE = -(2**63)


@dataclass(frozen=True, kw_only=True)
class FrameIndex:
    """The frames of a stream in the order they are shown."""

    times_s: np.ndarray
    """float64, n, ascending; the first is 0."""
    first_pts: int
    """Presentation time of the first shown frame, in the stream's units."""
    duration_s: float
    estimated: bool = False
    """True if the times are computed from the order and the rate, because the file has no times to be trusted."""
    pts: np.ndarray | None = None
    """int64, n: by this a decoded frame is recognised. None if frames can only be counted from the start."""
    packet: np.ndarray | None = None
    """int64, n: the packet that holds each frame."""
    start: np.ndarray | None = None
    """int64, n: the key packet from which each frame must be decoded."""

    def __len__(self) -> int:
        return len(self.times_s)

    @property
    def variable_rate(self) -> bool:
        """True if index / average rate differs from some frame's time by more than one average gap."""
        if len(self) < 3:
            return False
        gap = self.times_s[-1] / (len(self) - 1)
        return bool(np.abs(self.times_s - gap * np.arange(len(self))).max() > gap)


def from_packets(packets: Packets, rate: float, *, trusted: bool) -> FrameIndex:
    """The index as the packets declare it.

    Args:
        packets: all packets of the video stream; at least one is shown.
        rate: average frames a second, used only if timestamps are missing.
        trusted: False for containers whose presentation times are guesses.
    """
    visible_packets = np.flatnonzero(~packets.hidden)
    pts = packets.pts[visible_packets]
    if (pts == NONE).any() or len(np.unique(pts)) != len(pts):
        return by_order(len(visible_packets), rate)
    order = np.argsort(pts, kind="stable")
    pts, packet = pts[order], visible_packets[order]
    first_pts = int(pts[0])
    times_s = seconds(pts - first_pts, packets.time_base)
    duration_s = times_s[-1] + _last_gap(packets.duration[packet[-1]] * packets.time_base, times_s, rate)
    index = FrameIndex(times_s=times_s, first_pts=first_pts, duration_s=duration_s, estimated=not trusted)
    start = _key_packets(packets, pts, packet) if trusted else None
    return index if start is None else replace(index, pts=pts, packet=packet, start=start)


def _key_packets(packets: Packets, pts: np.ndarray, packet: np.ndarray) -> np.ndarray | None:
    """The packet at which decoding must start for each frame (int64, n), or None if some frame has none.

    This is the last key packet stored before the frame. But if that key frame is shown after the frame, the frame
    depends on an earlier key frame.
    """
    keys = np.flatnonzero(packets.key)
    if len(keys) == 0 or (packets.pts[keys] == NONE).any():
        return None
    position = np.searchsorted(keys, packet, side="right") - 1  # in `keys`
    while (shown_later := (position >= 0) & (packets.pts[keys[position]] > pts)).any():
        position = position - shown_later
    return None if (position < 0).any() else keys[position]


def from_decoding(pts: list[int | None], time_base: Fraction, rate: float, last_duration: int) -> FrameIndex:
    """The index of the frames that came out of a full decode, for files whose packets cannot be trusted.

    Frames can then only be counted. Times that go backwards are sorted.
    """
    timestamps = [value for value in pts if value is not None]
    if len(timestamps) != len(pts):
        return by_order(len(pts), rate)
    ordered = np.sort(np.array(timestamps, dtype=np.int64))
    times_s = seconds(ordered - ordered[0], time_base)
    duration_s = times_s[-1] + _last_gap(last_duration * time_base, times_s, rate)
    return FrameIndex(
        times_s=times_s,
        first_pts=int(ordered[0]),
        duration_s=duration_s,
        estimated=bool((np.diff(timestamps) < 0).any()),
    )


def by_order(count: int, rate: float) -> FrameIndex:
    """The index of `count` frames without timestamps, shown at a steady rate."""
    return FrameIndex(times_s=np.arange(count) / rate, first_pts=0, duration_s=count / rate, estimated=True)


def seconds(ticks: np.ndarray, time_base: Fraction) -> np.ndarray:
    """float64 seconds of int64 ticks."""
    return ticks.astype(np.float64) * time_base.numerator / time_base.denominator


def _last_gap(duration: Fraction, times_s: np.ndarray, rate: float) -> float:
    """Seconds for which the last frame is shown: as its packet says, if that is plausible, else the median gap."""
    median_gap = float(np.median(np.diff(times_s))) if len(times_s) > 1 else 0.0
    if duration > 0 and (median_gap == 0 or median_gap / 2 <= duration <= 10 * median_gap):
        return float(duration)
    return median_gap or 1 / rate
