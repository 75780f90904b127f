"""When each frame of a stream is shown and where decoding must start for it, from the packets alone.

n frames in the order they are shown; packets are numbered in the order they are stored
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Packets:
    """What the packets of one stream say of themselves, one entry each, in stored order."""

    pts: np.ndarray
    """int64, presentation times in units of `time_base`; NONE where the packet has none."""
    dts: np.ndarray
    """int64, decoding times; NONE where the packet has none."""
    duration: np.ndarray
    """int64, 0 where unknown."""
    key: np.ndarray
    """bool, decoding can start here."""
    hidden: np.ndarray
    """bool, decoded but never shown: an edit list cuts it off."""
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
    """True where times follow from order and rate because the file has none that can be believed."""
    pts: np.ndarray | None = None
    """int64, n: what a decoded frame is recognised by. None if frames can only be counted from the start."""
    packet: np.ndarray | None = None
    """int64, n: the packet that holds each frame."""
    start: np.ndarray | None = None
    """int64, n: the key packet from which each frame must be decoded."""

    def __len__(self) -> int:
        return len(self.times_s)

    @property
    def variable_rate(self) -> bool:
        """True where index / average rate misses some frame's time by more than one average gap."""
        if len(self) < 3:
            return False
        gap = self.times_s[-1] / (len(self) - 1)
        return bool(np.abs(self.times_s - gap * np.arange(len(self))).max() > gap)


def from_packets(packets: Packets, rate: float, *, trusted: bool) -> FrameIndex:
    """The index that the packets promise.

    Args:
        packets: of the video stream, at least one of them shown.
        rate: average frames a second, used only where timestamps are missing.
        trusted: False for containers whose presentation times are guesses.
    """
    shown = np.flatnonzero(~packets.hidden)
    pts = packets.pts[shown]
    if (pts == NONE).any() or len(np.unique(pts)) != len(pts):
        return by_order(len(shown), rate)
    order = np.argsort(pts, kind="stable")
    pts, packet = pts[order], shown[order]
    first_pts = int(pts[0])
    times_s = seconds(pts - first_pts, packets.time_base)
    duration_s = times_s[-1] + _last_gap(packets.duration[packet[-1]] * packets.time_base, times_s, rate)
    index = FrameIndex(times_s=times_s, first_pts=first_pts, duration_s=duration_s, estimated=not trusted)
    start = _key_packets(packets, pts, packet) if trusted else None
    return index if start is None else replace(index, pts=pts, packet=packet, start=start)


def _key_packets(packets: Packets, pts: np.ndarray, packet: np.ndarray) -> np.ndarray | None:
    """Where decoding must start for each frame, or None if some frame has no such place.

    A frame shown before the key frame that precedes it in the file leans on the key frame before that one.
    """
    keys = np.flatnonzero(packets.key)
    if len(keys) == 0 or (packets.pts[keys] == NONE).any():
        return None
    before = np.searchsorted(keys, packet, side="right") - 1
    while (late := (before >= 0) & (packets.pts[keys[before]] > pts)).any():
        before = before - late
    return None if (before < 0).any() else keys[before]


def from_decoding(pts: list[int | None], time_base: Fraction, rate: float, last_duration: int) -> FrameIndex:
    """The index of what a decode from start to end has shown, for files whose packets cannot be believed.

    Frames are known by their order alone. Where their times go backwards, they are sorted.
    """
    known = [value for value in pts if value is not None]
    if len(known) != len(pts):
        return by_order(len(pts), rate)
    ordered = np.sort(np.array(known, dtype=np.int64))
    times_s = seconds(ordered - ordered[0], time_base)
    duration_s = times_s[-1] + _last_gap(last_duration * time_base, times_s, rate)
    return FrameIndex(
        times_s=times_s,
        first_pts=int(ordered[0]),
        duration_s=duration_s,
        estimated=bool((np.diff(known) < 0).any()),
    )


def by_order(count: int, rate: float) -> FrameIndex:
    """The index of `count` frames without timestamps, shown at a steady rate."""
    return FrameIndex(times_s=np.arange(count) / rate, first_pts=0, duration_s=count / rate, estimated=True)


def seconds(ticks: np.ndarray, time_base: Fraction) -> np.ndarray:
    """float64 seconds of int64 ticks."""
    return ticks.astype(np.float64) * time_base.numerator / time_base.denominator


def _last_gap(duration: Fraction, times_s: np.ndarray, rate: float) -> float:
    """How long the last frame stays: what its packet says if that is likely, else the usual gap."""
    usual = float(np.median(np.diff(times_s))) if len(times_s) > 1 else 0.0
    if duration > 0 and (usual == 0 or usual / 2 <= duration <= 10 * usual):
        return float(duration)
    return usual or 1 / rate
