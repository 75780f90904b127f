"""When each frame of a stream is shown, and from which packet it must be decoded, found from the packets alone.

n frames in the order they are shown; packets are numbered in the order they are stored
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from mmllm.video._broken_clock import IsJump, repaired
from mmllm.video._last_frame import shown_last
from mmllm.video._missing_times import filled
from mmllm.video._packet_headers import NONE, Packets

_AT_THE_START = 128
"""Among so many packets are those that cannot be decoded because their key packet is missing."""


@dataclass(frozen=True, kw_only=True)
class FrameIndex:
    """The frames of a stream in the order they are shown."""

    times_s: np.ndarray
    """float64, n, ascending; counted from the first frame."""
    first_pts: int | None
    """Presentation time of the first shown frame, in the stream's units; None if it has none."""
    duration_s: float
    """Seconds from the start of the first frame to the end of the last."""
    estimated: bool = False
    """True if the times are computed from the order and the rate, because the file has no times to be trusted."""
    pts: np.ndarray | None = None
    """int64, n: by this a decoded frame is recognised. None if frames can only be counted from the start."""
    packet: np.ndarray | None = None
    """int64, n: the packet that holds each frame."""
    start: np.ndarray | None = None
    """int64, n: the key packet from which each frame must be decoded."""
    retimed: np.ndarray | None = None
    """int64, a time for each packet, to be given to the decoder with it; None if the file's own times are used."""
    breaks: tuple[int, ...] = ()
    """The frames at which the file's clock falls back or jumps."""
    problem: str = ""
    """What is wrong with the file's clock, for a warning; empty if nothing is."""

    def __len__(self) -> int:
        return len(self.times_s)

    @property
    def variable_rate(self) -> bool:
        """True if index / average rate differs from some frame's time by more than one average gap."""
        if len(self) < 3:
            return False
        gap = self.duration_s / len(self)
        return bool(np.abs(self.times_s - gap * np.arange(len(self))).max() > gap)


def from_packets(
    packets: Packets,
    rate: float,
    *,
    trusted: bool,
    first_pts: int | None,
    end: float | None,
    held_back: int,
    is_jump: IsJump,
) -> FrameIndex:
    """The index as the packets declare it. A clock that falls back, jumps or repeats itself is repaired.

    Args:
        packets: all packets of the video stream; at least one is shown.
        rate: average frames a second, used only if timestamps are missing.
        trusted: False for containers whose presentation times are guesses.
        first_pts: time of the frame that came out first; packets stored near it with earlier times are never shown.
        end: where the stream ends by its header, in the stream's units.
        held_back: see `frames_held_back`.
        is_jump: whether the clock jumps between two packets, given by their numbers.
    """
    shown = np.flatnonzero(~packets.hidden)
    second = float(1 / packets.time_base)
    declared = packets.pts[shown]
    completed = filled(declared, second) if trusted else None
    pts = declared if completed is None else completed
    if (pts == NONE).any():
        missing = int((declared == NONE).sum())
        problem = f"{missing} of its {len(shown)} frames have no time" if missing < len(shown) else ""
        return replace(by_order(_count(declared, first_pts), rate), problem=problem)
    clock = repaired(
        pts,
        packets.key[shown],
        second=second,
        gap=second / rate,
        held_back=held_back,
        is_jump=lambda before, after: is_jump(int(shown[before]), int(shown[after])),
    )
    if clock is None or (clock.moved and not trusted):
        return by_order(_count(declared, first_pts), rate)
    order = clock.order
    if first_pts is not None:  # only with the first clock: another one may start anywhere
        until = clock.breaks[0] if clock.breaks else len(shown)
        order = order[(order >= until) | (pts[order] >= first_pts)]
    if len(order) == 0:
        return by_order(0, rate)
    first_pts = int(pts[order[0]])
    pts, packet = clock.ticks[order], shown[order]
    times_s = seconds(pts - pts[0], packets.time_base)
    retimed = None
    if clock.moved or completed is not None:
        retimed = np.full(len(packets), NONE)
        retimed[packet] = pts
    breaks, lone = (tuple(np.flatnonzero(np.isin(order, places)).tolist()) for places in (clock.breaks, clock.lone))
    last_s = shown_last(int(packet[-1]), int(pts[-1]), None if clock.breaks else end, packets, times_s, rate)
    index = FrameIndex(
        times_s=times_s,
        first_pts=first_pts,
        duration_s=times_s[-1] + last_s,
        estimated=not trusted or bool(clock.breaks) or bool(clock.lone) or clock.stands_still,
        retimed=retimed,
        breaks=breaks,
        problem=f"its clock falls back or jumps {_places(breaks or lone)}" if breaks or lone else "",
    )
    start = _key_packets(packets, pts, packet, retimed) if trusted else None
    return index if start is None else replace(index, pts=pts, packet=packet, start=start)


def _key_packets(
    packets: Packets, pts: np.ndarray, packet: np.ndarray, retimed: np.ndarray | None
) -> np.ndarray | None:
    """The packet at which decoding must start for each frame (int64, n), or None if some frame has none.

    This is the last key packet stored before the frame. But if that key frame is shown after the frame, the frame
    depends on an earlier key frame.
    """
    keys = np.flatnonzero(packets.key)
    pts_of_packet = packets.pts if retimed is None else retimed
    if len(keys) == 0 or (packets.pts[keys] == NONE).any():
        return None
    position = np.searchsorted(keys, packet, side="right") - 1  # in `keys`
    while (shown_later := (position >= 0) & (pts_of_packet[keys[position]] > pts)).any():
        position = position - shown_later
    return None if (position < 0).any() else keys[position]


def from_decoding(
    pts: list[int | None], packets: Packets, rate: float, previous: FrameIndex, end: float | None
) -> FrameIndex:
    """The index of the frames that came out of a full decode, for files whose packets cannot be trusted.

    Frames can then only be counted. Times that go backwards are sorted.

    Args:
        pts: times of the frames in the order in which they came out.
        packets: all packets of the stream.
        rate: average frames a second, used only if timestamps are missing.
        previous: the index as the packets declare it.
        end: as for `from_packets`.
    """
    timestamps = [value for value in pts if value is not None]
    if len(timestamps) != len(pts):
        return by_order(len(pts), rate)
    ordered = np.sort(np.array(timestamps, dtype=np.int64))
    times_s = seconds(ordered - ordered[0], packets.time_base)
    pts_of_packet = packets.pts if previous.retimed is None else previous.retimed
    last = np.flatnonzero(pts_of_packet == ordered[-1])
    last_s = shown_last(
        int(last[0]) if len(last) else None, int(ordered[-1]), None if previous.breaks else end, packets, times_s, rate
    )
    return FrameIndex(
        times_s=times_s,
        first_pts=int(ordered[0]),
        duration_s=times_s[-1] + last_s,
        estimated=(previous.retimed is not None and previous.estimated) or bool((np.diff(timestamps) < 0).any()),
        retimed=previous.retimed,
        breaks=previous.breaks,
    )


def _places(frames: tuple[int, ...]) -> str:
    return f"at frame {frames[0]}" + (f" and {len(frames) - 1} times more" if len(frames) > 1 else "")


def _count(pts: np.ndarray, first_pts: int | None) -> int:
    """How many of the packets are shown: all but those at the start with times before the first frame."""
    if first_pts is None:
        return len(pts)
    start = pts[:_AT_THE_START]
    return len(pts) - int(((start != NONE) & (start < first_pts)).sum())


def by_order(count: int, rate: float) -> FrameIndex:
    """The index of `count` frames without timestamps, shown at a steady rate."""
    return FrameIndex(times_s=np.arange(count) / rate, first_pts=None, duration_s=count / rate, estimated=True)


def seconds(ticks: np.ndarray, time_base: Fraction) -> np.ndarray:
    """float64 seconds of int64 ticks."""
    return ticks.astype(np.float64) * time_base.numerator / time_base.denominator
