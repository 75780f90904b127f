"""Times for the few packets of a stream that have none."""

from __future__ import annotations

import numpy as np

from mmllm.video._packet_headers import NONE


def filled(pts: np.ndarray, second: float) -> np.ndarray | None:
    """The times with the few missing ones put between their neighbours; None if none is missing.

    Also None where frames are stored in another order than shown, because their places would be a guess.
    """
    at = np.flatnonzero(pts != NONE)
    missing = len(pts) - len(at)
    if not missing or 10 * missing > len(pts) or 50 * int((np.diff(pts[at]) < 0).sum()) > len(pts):
        return None
    gap = max(1, int(np.median(np.diff(pts[at]))))
    result = pts.copy()
    for packet in np.flatnonzero(pts == NONE).tolist():
        after = int(np.searchsorted(at, packet))
        if after == 0:
            result[packet] = pts[at[0]] - gap * (int(at[0]) - packet)
            continue
        before = int(at[after - 1])
        step = gap
        if after < len(at):
            room = int(pts[at[after]]) - int(pts[before])
            step = room // (int(at[after]) - before) if 0 < room <= 10 * second else gap
        result[packet] = pts[before] + step * (packet - before)
    return result
