"""Clocks that fall back, jump or stand still, as in files joined byte by byte: times that go on instead.

n packets in stored order; times are in ticks, whole numbers of a stream's time base
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mmllm.video._lone_times import among_neighbours, lone_packets

JUMP_S = 10.0
"""A gap above this may be a jump of the clock."""
_REORDERED = 16
"""Frames that a decoder may hold back at most, in all codecs with B-frames."""
_CODECS_WITH_B_FRAMES = ("h264", "hevc", "vvc", "evc", "mpeg1video", "mpeg2video", "mpeg4", "vc1", "wmv3", "cavs")
_FEW = 4
"""So many frames are usually held back at most."""
_MOST_KEYS = 0.5
"""If more packets are marked as key packets, the marks say nothing: an mp4 without a list of them marks all."""
_LONGEST_PYRAMID = 64
"""No codec stores so many packets between a frame and another one that is shown before it."""

IsJump = Callable[[int, int], bool]
"""Whether the gap between two shown packets (their numbers among the n) is a jump of the clock, not a long still."""


@dataclass(frozen=True, kw_only=True)
class RepairedClock:
    """Times that ascend, and where they had to be changed."""

    ticks: np.ndarray
    """int64, n: when each packet's frame is shown; all differ."""
    order: np.ndarray
    """int64, n: the packets in the order they are shown."""
    moved: bool
    """Whether any time differs from the file's."""
    breaks: tuple[int, ...] = ()
    """The packets at which the clock falls back or jumps."""
    lone: tuple[int, ...] = ()
    """The packets whose time is far from those of all packets around them."""
    stands_still: bool = False
    """Whether three frames or more share a time."""


def frames_held_back(codec: str) -> int:
    """How many frames may be decoded before a frame and shown after it."""
    return _REORDERED if codec in _CODECS_WITH_B_FRAMES else 0


def repaired(
    pts: np.ndarray, key: np.ndarray, *, second: float, gap: float, held_back: int, is_jump: IsJump
) -> RepairedClock | None:
    """The clock of a stream, with an offset after each place where it falls back or jumps.

    Frames are sorted by their times only between two such places. Of frames with one time, the later move by a tick.

    Args:
        pts: int64, n, presentation times.
        key: bool, n, key packets.
        second: ticks in a second.
        gap: ticks between frames, used if no two frames of the file tell it.
        held_back: see `frames_held_back`.
        is_jump: asked for gaps that are long and unusual in this video.

    Returns:
        The clock; None if more than half of the times are repetitions, so that there is no clock to speak of.
    """
    if held_back and key.mean() > _MOST_KEYS:
        key = np.zeros_like(key)
    by_time = np.argsort(pts, kind="stable")
    breaks: list[int] = []
    lone: list[int] = []
    if _suspicious(pts, key, np.diff(pts[by_time]), second, held_back):
        unusual = _unusual(pts, second)
        lone = lone_packets(pts, unusual)
        if lone:
            pts = among_neighbours(pts, lone)
            by_time = np.argsort(pts, kind="stable")
        breaks = _breaks(pts, key, unusual, held_back, is_jump)
    segment = np.zeros(len(pts), dtype=np.int64)
    segment[breaks] = 1
    segment = np.cumsum(segment)
    order = np.lexsort((pts, segment)) if breaks else by_time
    ticks = pts[order]
    gaps = np.diff(ticks)
    usual = gaps[(gaps > 0) & (np.diff(segment[order]) == 0)]
    gap = max(1, round(float(np.median(usual)) if len(usual) else gap))
    at_breaks = np.flatnonzero(np.diff(segment[order]))
    gaps[at_breaks] = gap
    if 2 * int((gaps == 0).sum()) > len(pts):
        return None
    still = bool((gaps == 0).any())
    if breaks or still:
        ticks = ticks[0] + np.concatenate([[0], np.cumsum(gaps)])
    stands_still = still and _spread(ticks, gap)
    if still:  # each frame at least a tick after the one before it
        ticks = np.maximum.accumulate(ticks - np.arange(len(ticks))) + np.arange(len(ticks))
    in_stored_order = np.empty_like(ticks)
    in_stored_order[order] = ticks
    return RepairedClock(
        ticks=in_stored_order,
        order=order,
        moved=bool(breaks) or bool(lone) or still,
        breaks=tuple(breaks),
        lone=tuple(lone),
        stands_still=stands_still,
    )


def _suspicious(pts: np.ndarray, key: np.ndarray, gaps: np.ndarray, second: float, held_back: int) -> bool:
    """Whether the packets must be looked at one by one, which takes longer."""
    latest = np.maximum.accumulate(pts)
    return bool(
        (key & (pts < latest)).any()
        or (pts[held_back + 1 :] < latest[: -held_back - 1]).any()
        or (gaps > JUMP_S * second).any()
    )


def _unusual(pts: np.ndarray, second: float) -> float:
    """Ticks of a gap that is long, and unusual in this video: a lecture may have one frame a minute."""
    gaps = np.diff(np.unique(pts))
    return max(JUMP_S * second, 10 * float(np.percentile(gaps, 90)) if len(gaps) else 0.0)


def _breaks(pts: np.ndarray, key: np.ndarray, unusual: float, held_back: int, is_jump: IsJump) -> list[int]:
    """The packets from which on the clock is another one.

    It falls back at a key packet that would be shown before an earlier packet, and where a frame would be shown before
    more frames than a decoder can hold back.
    """
    times, falls, leaps = pts.tolist(), [], []
    latest: list[int] = []  # the last times since the last break, ascending, as many as can be held back and one more
    latest_at = 0  # the packet with the last of them
    for packet, (time, is_key) in enumerate(zip(times, key.tolist(), strict=True)):
        back = bool(latest) and (
            (is_key and time < latest[-1])
            or (len(latest) > held_back and time < latest[0])
            or (time < latest[-1] and packet - latest_at > _LONGEST_PYRAMID)
        )
        if back:  # packets after the latest one may belong to the new clock, too
            first = _first_of_the_new(times, latest, range(latest_at + 1, packet + 1), unusual)
            falls.append(first)
            latest = sorted(times[first:packet])[-held_back - 1 :]
            latest_at = max(range(first, packet + 1), key=times.__getitem__)
        elif latest and time - latest[-1] > unusual:
            leaps.append((latest_at, packet))
            latest = []
        if not latest or time >= latest[-1]:
            latest_at = packet
        insort(latest, time)
        del latest[: -held_back - 1]
    jumps = [after for before, after in leaps if falls or is_jump(before, after)]
    return sorted({*falls, *jumps})


def _first_of_the_new(times: list[int], latest: list[int], packets: range, unusual: float) -> int:
    """The first of the packets after the latest one that has the clock of the last of them, not the one before it.

    Frames that are stored behind the latest one and shown before it have few others between it and them.
    """
    before, after = latest[-1], times[packets[-1]]
    for packet in packets[:-1]:
        far = before - after > unusual or len(latest) - bisect_right(latest, times[packet]) > _FEW
        if far and 2 * times[packet] < before + after:
            return packet
    return packets[-1]


def _spread(ticks: np.ndarray, gap: int) -> bool:
    """Spreads three frames or more with one time over the gap after them; True if there are any."""
    ends = np.append(np.flatnonzero(np.diff(ticks)) + 1, len(ticks))
    begins = np.append(0, ends[:-1])
    long = ends - begins > 2
    for begin, end in zip(begins[long].tolist(), ends[long].tolist(), strict=True):
        room = (int(ticks[end]) - int(ticks[begin])) // (end - begin) if end < len(ticks) else gap
        ticks[begin:end] += np.arange(end - begin) * min(gap, room)
    return bool(long.any())
