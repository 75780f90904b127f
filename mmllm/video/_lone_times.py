"""Single wrong times in the middle of a stream.

n packets in stored order; times are in ticks
"""

from __future__ import annotations

import numpy as np

_NEIGHBOURS = 32
"""Packets before and after a packet that are looked at to judge its time."""
_LEAST = 16
"""So many must be there. Near a long still, a frame may be stored far from those that are shown around it."""


def lone_packets(pts: np.ndarray, unusual: float) -> list[int]:
    """Packets whose time is far from those of all packets around them, while these are near each other."""
    steps = np.diff(pts)
    apart = (np.abs(steps[:-1]) > unusual) & (np.abs(steps[1:]) > unusual) & (np.abs(pts[2:] - pts[:-2]) <= unusual)
    return [
        packet
        for packet in (np.flatnonzero(apart) + 1).tolist()
        if all(
            len(side) > _LEAST and (np.abs(side - pts[packet]) > unusual).all()
            for side in (pts[max(0, packet - _NEIGHBOURS) : packet], pts[packet + 1 : packet + 1 + _NEIGHBOURS])
        )
    ]


def among_neighbours(pts: np.ndarray, lone: list[int]) -> np.ndarray:
    """The times, with those of `lone` packets in the nearest gap of the packets around them, where they are missing."""
    pts = pts.copy()
    others = np.ones(len(pts), dtype=bool)
    others[lone] = False
    for packet in lone:
        first, last = max(0, packet - _NEIGHBOURS), packet + 1 + _NEIGHBOURS
        around = np.sort(pts[first:last][others[first:last]])
        gaps = np.diff(around)
        holes = np.flatnonzero(gaps > 1.5 * np.median(gaps))
        middles = around[holes] + gaps[holes] // 2
        if len(holes):
            pts[packet] = middles[np.abs(middles - pts[packet - 1]).argmin()]
        else:
            pts[packet] = pts[packet - 1]
    return pts
