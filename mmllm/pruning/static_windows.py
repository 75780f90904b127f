"""The windows of a video in which most places stay as they are, over the whole video, by dynamic programming.

    gain of a window = the places that stay over all of it, times its frames but one: so many tokens are saved
    best to frame i  = the best to frame i - 1, or a window that ends at i behind the best before it

T frames, N places of a frame, W frames of the longest window
"""

from __future__ import annotations

import numpy as np


def static_windows(static: np.ndarray, most: int) -> tuple[list[tuple[int, int]], int]:
    """The first and the last frame of each window, in order, and the tokens that all of them save.

    A frame that no window holds is one by itself. Of equal gains the shortest window is taken.

    Args:
        static: bool, T-1 N. Whether a place of a frame is the same in the next one.
        most: W, at least 1.
    """
    frames = len(static) + 1
    lasting = _lasting(static, min(most, frames))
    best = np.zeros(frames + 1, dtype=np.int64)  # tokens saved before each frame
    first = np.arange(frames)  # of the window that ends at a frame
    for last in range(1, frames):
        further = np.arange(1, min(last, most - 1) + 1)  # frames of a window behind its first one
        gains = best[last - further] + further * lasting[last - further, further]
        best[last + 1] = best[last]
        if len(gains) and gains.max() > best[last]:
            best[last + 1], first[last] = gains.max(), last - further[gains.argmax()]
    windows, last = [], frames - 1
    while last >= 0:
        windows.append((int(first[last]), last))
        last = int(first[last]) - 1
    return windows[::-1], int(best[frames])


def _lasting(static: np.ndarray, most: int) -> np.ndarray:
    """int64, T W: how many places of a frame stay the same in at least so many frames behind it."""
    frames, run = len(static) + 1, np.zeros(static.shape[1], dtype=np.int64)
    lasting = np.zeros((frames, most), dtype=np.int64)
    for frame in range(frames - 1, -1, -1):
        if frame < len(static):
            run = np.minimum(run + 1, most - 1) * static[frame]
        lasting[frame] = np.bincount(run, minlength=most)[::-1].cumsum()[::-1]
    return lasting
