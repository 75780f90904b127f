"""Which frames of a video are sampled, as pure functions of its length. No file is read.

n frames in the video, T sampled frames, c candidates
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mmllm.errors import ConfigError, InputError
from mmllm.fields import from_mapping, require


@dataclass(frozen=True, kw_only=True)
class FrameRule:
    """How frames are chosen from a video, or from a part of it."""

    rule: Literal["uniform", "slow-fast", "slow-fast-demo", "steady", "even"] = "uniform"
    """uniform: LITA's, from the first to the last, and short videos repeat frames. slow-fast: a constant rate, thinned
    out evenly; short videos give fewer frames. slow-fast-demo: like uniform, but rounded down. steady: TDC's constant
    rate, thinned out from the first frame on; short videos give fewer frames. even: like uniform, with fewer frames
    where there would be more than the rate, as Qwen3-VL's processor does."""
    fps: float = 4.0
    """Rate of slow-fast, 4 in its training and 2 in its published benchmarks, of steady, 1 in TDC, and of even, 2."""

    def __post_init__(self) -> None:
        require(self.fps > 0, self, "fps", "above zero")

    def indices(self, count: int, fps: float, frames: int) -> np.ndarray:
        """int64, ascending: the chosen ones of `count` frames at a rate of `fps`; `frames` of them at most.

        Raises:
            InputError: if a number is not positive.
        """
        if self.rule == "slow-fast":
            return slow_fast(count, fps, frames, self.fps)
        if self.rule == "steady":
            return steady(count, fps, frames, self.fps)
        if self.rule == "even":
            return even(count, fps, frames, self.fps)
        if self.rule == "slow-fast-demo":
            return slow_fast_demo(count, frames)
        return uniform_by_index(count, frames)[0]

    @classmethod
    def of(cls, value: Any) -> FrameRule:
        """A rule as it is written: `slow-fast:fps=2`, a mapping of fields, or None for LITA's.

        Raises:
            ConfigError: naming what is allowed.
        """
        if value is None or isinstance(value, FrameRule):
            return value or cls()
        if isinstance(value, str):
            name, _, rest = value.partition(":")
            pairs = [item.partition("=") for item in rest.split(",") if item]
            value = {"rule": name, **{key: text for key, _, text in pairs}}
        if not isinstance(value, Mapping):
            raise ConfigError(f"sampling must be a rule such as slow-fast:fps=2, not {value!r:.80}")
        return from_mapping(cls, value, "sampling")


_STEADY_MOST = 1000
UNIFORM = FrameRule()
"""LITA's rule."""


def uniform_by_index(count: int, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames spread evenly from the first to the last, both included, by LITA's rule.

    The index of frame i is round_half_even(linspace(0, n - 1, T)[i]). If the video has fewer than T frames, some are
    repeated.

    Args:
        count: n, frames of the video.
        frames: T, frames to sample.

    Returns:
        Indices (int64, T, ascending) and `valid` (bool, T), which is False for the repetition of an index.

    Raises:
        InputError: if either number is not positive.
    """
    _positive(count=count, frames=frames)
    indices = np.rint(np.linspace(0, count - 1, frames)).astype(np.int64)
    return indices, first_occurrences(indices)


def uniform_by_time(duration_s: float, frames: int) -> np.ndarray:
    """Times in seconds (float64, T) of the middles of T equal parts of the video.

    Raises:
        InputError: if the duration or the number of frames is not positive.
    """
    _positive(frames=frames)
    _positive_number(duration_s=duration_s)
    return (np.arange(frames) + 0.5) * (duration_s / frames)


def every(duration_s: float, fps: float, max_frames: int | None = None) -> np.ndarray:
    """Times in seconds (float64) at a constant rate, from 0 up to the end of the video.

    Args:
        duration_s: length of the video.
        fps: times a second.
        max_frames: if the rate gives more times, this many of them are chosen evenly, first and last included.

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
    """Indices (int64) as Slow-Fast's training and benchmarks choose them: a constant rate, then an even subset.

    Candidates are every round(fps / min(target_fps, fps))-th frame. If they are fewer than T, all are taken. Otherwise
    candidate round_half_even((i + 1) * c / T - 1) is taken for i = 0 .. T - 1.

    Args:
        count: n, frames of the video.
        fps: average rate of the video.
        frames: T, the highest number of frames to sample.
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
    """Indices (int64, T) as Slow-Fast's demo chooses them: linspace(0, n - 1, T), rounded down.

    Raises:
        InputError: if either number is not positive.
    """
    _positive(count=count, frames=frames)
    return np.linspace(0, count - 1, frames).astype(np.int64)


def steady(count: int, fps: float, frames: int, target_fps: float = 1.0) -> np.ndarray:
    """Indices (int64) as TDC chooses them: every round(fps / target_fps)-th frame, thinned out by equal steps.

    If these are more than 1000, only every (their number // 1000)-th stays; of what is then more than T, candidate
    int(i c / T) is taken for i = 0 .. T - 1.

    Args:
        count: n, frames of the video.
        fps: average rate of the video.
        frames: T, the highest number of frames to sample.
        target_fps: candidates a second.

    Raises:
        InputError: if a number is not positive.
    """
    _positive(count=count, frames=frames)
    _positive_number(fps=fps, target_fps=target_fps)
    candidates = np.arange(0, count, max(1, round(fps / target_fps)))
    if len(candidates) > _STEADY_MOST:
        candidates = candidates[:: len(candidates) // _STEADY_MOST]
    if len(candidates) <= frames:
        return candidates
    step = len(candidates) / frames
    return candidates[[int(step * i) for i in range(frames)]]


def even(count: int, fps: float, frames: int, target_fps: float = 2.0) -> np.ndarray:
    """Indices (int64) spread evenly from the first frame to the last: T of them, or as many as `target_fps` a second.

    Args:
        count: n, frames of the video.
        fps: average rate of the video.
        frames: T, the highest number of frames to sample.
        target_fps: most frames a second.

    Raises:
        InputError: if a number is not positive.
    """
    _positive(count=count, frames=frames)
    _positive_number(fps=fps, target_fps=target_fps)
    return uniform_by_index(count, min(frames, count, max(1, int(count / fps * target_fps))))[0]


def first_occurrences(indices: np.ndarray) -> np.ndarray:
    """bool, one for each index: False if the same index is earlier in the list."""
    valid = np.zeros(len(indices), dtype=bool)
    valid[np.unique(indices, return_index=True)[1]] = True
    return valid


def nearest(times_s: np.ndarray, requested_s: np.ndarray) -> np.ndarray:
    """For each requested time, the index (int64) of the nearest entry of ascending `times_s`; of two, the earlier."""
    after = np.searchsorted(times_s, requested_s).clip(0, len(times_s) - 1)
    before = (after - 1).clip(0)
    return np.where(requested_s - times_s[before] <= times_s[after] - requested_s, before, after)


def _positive(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise InputError(f"{name} must be at least 1, not {value}")


def _positive_number(**numbers: float) -> None:
    for name, value in numbers.items():
        if not (np.isfinite(value) and value > 0):
            raise InputError(f"{name} must be a positive number, not {value}")
