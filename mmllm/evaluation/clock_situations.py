"""What each known fault makes of the times of frames, as pure functions.

n frames of a video, T frames that were looked at, P points in time
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import numpy as np

FAULTS = {
    "index over fps": "times are numbers of frames over the average rate, not the times in the file",
    "sampled fps": "numbers of frames in the source are divided by the rate of sampling",
    "dropped offset": "the picture begins later than the sound, and this offset is missing",
    "dropped start": "a part of a video was looked at, and the second at which it begins is missing",
    "stretched range": "the times of a part of a video are stretched over the whole video",
    "frames without times": "frames came without times, and a rate was made up",
    "ignored times": "frames came with their times, and a rate was made up all the same",
    "first video's times": "the times of the first video stand for all videos",
    "wrong constant": "all times are multiplied by a constant, such as that of grouping frames",
    "whole seconds": "times are rounded to whole seconds",
}
"""Name of a fault -> what goes wrong."""

VARIANTS: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "index over fps": ("average rate", "mean step", "average rate from the first", "mean step from the first"),
    "sampled fps": ("rate asked for", "frames over length"),
    "dropped offset": ("",),
    "dropped start": ("",),
    "stretched range": ("T parts", "T - 1 parts"),
    "frames without times": ("24", "30", "25", "2", "1"),
    "ignored times": ("24", "30", "25", "2", "1"),
    "first video's times": ("by place", "by share"),
    "wrong constant": ("2", "0.5", "4", "0.25"),
    "whole seconds": ("nearest", "down", "up"),
})  # fmt: skip
"""Name of a fault -> the forms in which it occurs."""

Suspicion = Mapping[str, str]
"""Fault -> variant: what is assumed to go wrong together. Empty: nothing."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Situation:
    """What a back end was given, as far as its times may depend on it."""

    name: str
    """Of the case."""
    times_s: np.ndarray
    """float64, n. When each frame of the whole video is shown."""
    duration_s: float
    average_fps: float
    chosen: np.ndarray
    """int64, T, ascending. Numbers of the frames that are looked at."""
    sampled_fps: float | None = None
    """The rate of sampling that was asked for; None without one."""
    start_s: float | None = None
    """Where a part of the video begins; None if all of it is looked at."""
    in_memory: bool = False
    """Whether frames were given, not a file."""
    without_times: bool = False
    """Whether the frames came without times, so that nobody can know them."""
    first: Situation | None = None
    """The video that was given before this one, in one call."""

    def numbers(self, times_s: np.ndarray) -> np.ndarray:
        """float64, P: the number of the frame at each time, with a fraction between two frames."""
        return np.interp(times_s, self.times_s, np.arange(len(self.times_s)))

    def places(self, numbers: np.ndarray) -> np.ndarray:
        """float64, P: the place of frames with these numbers among the T frames, with a fraction between two."""
        return np.interp(numbers, self.chosen, np.arange(len(self.chosen)))

    @cached_property
    def possible(self) -> tuple[str, ...]:
        """The faults that can change anything here."""
        names = {
            "index over fps": not self.without_times,
            "sampled fps": self.sampled_fps is not None,
            "dropped offset": self.times_s[0] > 0 and self.start_s is None,
            "dropped start": self.start_s is not None,
            "stretched range": self.start_s is not None,
            "frames without times": self.without_times,
            "ignored times": self.in_memory and not self.without_times,
            "first video's times": self.first is not None,
            "wrong constant": True,
            "whole seconds": True,
        }
        return tuple(name for name, can in names.items() if can)


def faulty_times(situation: Situation, numbers: np.ndarray, suspicion: Suspicion) -> np.ndarray:
    """The times that frames get if the suspicion is right; only rounding to whole seconds is left to the reader.

    Args:
        situation: what was given.
        numbers: float64, P. Numbers of frames, possibly between two.
        suspicion: what is assumed to go wrong. Faults that are not possible here change nothing.

    Returns:
        float64, P. Seconds.
    """
    faults = {name: form for name, form in suspicion.items() if name in situation.possible}
    return _clock(situation, numbers, faults) * float(faults.get("wrong constant", 1))


def _clock(situation: Situation, numbers: np.ndarray, faults: Suspicion) -> np.ndarray:
    """The times before anything is multiplied."""
    places, frames = situation.places(numbers), len(situation.chosen)
    if (rate := faults.get("frames without times", faults.get("ignored times"))) is not None:
        return places / float(rate)
    if situation.first is not None and (form := faults.get("first video's times")) is not None:
        first = situation.first
        if form == "by share":  # as good as nobody knows which frames were chosen
            places = places * (len(first.chosen) - 1) / max(frames - 1, 1)
        others = np.interp(places, np.arange(len(first.chosen)), first.chosen)
        return _clock(first, others, {name: form for name, form in faults.items() if name in first.possible})
    if (form := faults.get("stretched range")) is not None:
        return places * situation.duration_s / (frames if form == "T parts" else max(frames - 1, 1))
    if (form := faults.get("sampled fps")) is not None and situation.sampled_fps is not None:
        even = frames / len(situation.times_s) * situation.average_fps
        return numbers / (even if form == "frames over length" else situation.sampled_fps)
    if (form := faults.get("index over fps")) is not None:
        count, span_s = len(situation.times_s), float(situation.times_s[-1] - situation.times_s[0])
        times_s = numbers * (span_s / (count - 1)) if "mean step" in form else numbers / situation.average_fps
        if "first" in form:
            times_s = times_s + situation.times_s[0]
    else:
        times_s = np.interp(numbers, np.arange(len(situation.times_s)), situation.times_s)
    if "dropped offset" in faults and "first" in faults.get("index over fps", "first"):
        times_s = times_s - situation.times_s[0]
    if "dropped start" in faults:
        kept = {name: form for name, form in faults.items() if name != "dropped start"}
        times_s = times_s - _clock(situation, situation.chosen[:1].astype(np.float64), kept)
    return times_s
