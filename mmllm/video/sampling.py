"""Which frames to look at: sample plans as pure functions of a video's length, without any file.

n frames in the video, T frames wanted, c candidates
"""

from __future__ import annotations

import numpy as np

from mmllm.errors import InputError


def uniform_by_index(count: int, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames spread evenly from the first to the last, both included, by LITA's rule.

    The index of frame i is round_half_even(linspace(0, n - 1, T)[i]). A video shorter than T repeats frames.

    Args:
        count: n, frames that there are.
        frames: T, frames wanted.

    Returns:
        Indices (int64, T, ascending) and `valid` (bool, T), False where an index only repeats the one before.

    Raises:
        InputError: if either number is not positive.
    """
    _positive(count=count, frames=frames)
    indices = np.rint(np.linspace(0, count - 1, frames)).astype(np.int64)
    return indices, first_occurrences(indices)


def uniform_by_time(duration_s: float, frames: int) -> np.ndarray:
    """Instants in seconds (float64, T) at the middles of T equal parts of the video.

    Raises:
        InputError: if the duration or the number of frames is not positive.
    """
    _positive(frames=frames)
    _positive_number(duration_s=duration_s)
    return (np.arange(frames) + 0.5) * (duration_s / frames)


def every(duration_s: float, fps: float, max_frames: int | None = None) -> np.ndarray:
    """Instants in seconds (float64) at a steady rate from 0, before the end of the video.

    Args:
        duration_s: length of the video.
        fps: instants a second.
        max_frames: if the rate gives more, this many are chosen evenly among them, first and last included.

    Raises:
        InputError: if a number is not positive.
    """
    _positive_number(duration_s=duration_s, fps=fps)
    count = max(1, int(np.ceil(round(duration_s * fps, 9))))
    ticks = np.arange(count)
    if max_frames is not None and count > max_frames:
        ticks = uniform_by_index(count, max_frames)[0]
    return ticks / fps


def slow_fast(count: int, fps: float, frames: int, target_fps: float = 4.0) -> np.ndarray:
    """Indices (int64) as Slow-Fast's training and benchmarks choose them: a steady rate, then an even subset.

    Candidates are every round(fps / min(target_fps, fps))-th frame. Fewer candidates than T are all taken;
    otherwise candidate round_half_even((i + 1) * c / T - 1) for i = 0 .. T - 1.

    Args:
        count: n, frames that there are.
        fps: average rate of the video.
        frames: T, the most that are wanted.
        target_fps: candidates a second: 4 in training, 2 in the published benchmarks.

    Raises:
        InputError: if a number is not positive.
    """
    _positive(count=count, frames=frames)
    _positive_number(fps=fps, target_fps=target_fps)
    step = max(1, round(fps / min(target_fps, fps)))
    candidates = np.arange(0, count, step)
    if len(candidates) < frames:
        return candidates
    chosen = np.rint((np.arange(frames) + 1) * len(candidates) / frames - 1).astype(np.int64)
    return candidates[chosen]


def slow_fast_demo(count: int, frames: int) -> np.ndarray:
    """Indices (int64, T) as Slow-Fast's demo chooses them: linspace(0, n - 1, T), cut to whole numbers.

    Raises:
        InputError: if either number is not positive.
    """
    _positive(count=count, frames=frames)
    return np.linspace(0, count - 1, frames).astype(np.int64)


def first_occurrences(indices: np.ndarray) -> np.ndarray:
    """bool, one for each index: False where it already stood earlier in the list."""
    valid = np.zeros(len(indices), dtype=bool)
    valid[np.unique(indices, return_index=True)[1]] = True
    return valid


def nearest(times_s: np.ndarray, wanted_s: np.ndarray) -> np.ndarray:
    """Index (int64) into ascending `times_s` of the entry nearest to each wanted instant, the earlier on a tie."""
    after = np.searchsorted(times_s, wanted_s).clip(0, len(times_s) - 1)
    before = (after - 1).clip(0)
    return np.where(wanted_s - times_s[before] <= times_s[after] - wanted_s, before, after)


def _positive(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise InputError(f"{name} must be at least 1, not {value}")


def _positive_number(**numbers: float) -> None:
    for name, value in numbers.items():
        if not (np.isfinite(value) and value > 0):
            raise InputError(f"{name} must be a positive number, not {value}")
