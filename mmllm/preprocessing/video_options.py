"""Options of one video: which values are allowed, and a refusal by name where a source cannot honour one."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mmllm.errors import InputError
from mmllm.preprocessing.memory_video import instants
from mmllm.tokens import VideoClip
from mmllm.video.audio import with_sound
from mmllm.video.opening import FrameSink, SoundOptions, VideoLimits, VideoReader, open_video
from mmllm.video.sampling import FrameRule

VIDEO_OPTIONS = ("num_frames", "fps", "start_s", "end_s", "video_metadata", "do_sample_frames", "sampling", "audio")


def checked(name: str, value: Any) -> Any:
    """The value of an option, as a number of Python where it is one.

    Raises:
        InputError, ConfigError: naming the option and what is allowed.
    """
    if name == "video_metadata":
        return value
    if name == "sampling":
        return FrameRule.of(value)
    if name in ("do_sample_frames", "audio"):
        if not isinstance(value, (bool, np.bool_)):
            raise InputError(f"{name} must be True or False, not {value!r:.80}")
        return bool(value)
    try:
        number = math.nan if isinstance(value, (bool, str)) else float(value)
        whole = operator.index(value) if name == "num_frames" else number
    except (TypeError, ValueError, OverflowError):
        whole = number = math.nan
    if name == "num_frames":
        if not 1 <= number <= VideoLimits().frames:
            raise InputError(f"num_frames must be a whole number from 1 to {VideoLimits().frames}, not {value!r:.80}")
    elif not (math.isfinite(number) and (number >= 0 if name == "start_s" else number > 0)):
        allowed = "zero or more" if name == "start_s" else "positive"
        raise InputError(f"{name} must be a number, {allowed}, not {value!r:.80}")
    return whole


def refuse(
    given: Mapping[str, Any], *, allowed: tuple[str, ...], source: str, but: Mapping[str, Any] | None = None
) -> None:
    """Refuses options that a source cannot honour.

    Args:
        given: the options.
        allowed: those that it honours.
        source: what the source is.
        but: values of other options that ask for nothing.

    Raises:
        InputError: naming the first option.
    """
    for name, value in given.items():
        if name not in allowed and not (but and name in but and but[name] == value):
            has = f"; it takes {', '.join(allowed)}" if allowed else ""
            raise InputError(f"{name} cannot be honoured for {source}{has}")


def refuse_both(given: Mapping[str, Any], one: str, other: str) -> None:
    """Refuses two options that both say how many frames are taken."""
    if given.get(one) is not None and given.get(other) is not None:
        raise InputError(
            f"{one}={given[one]} and {other}={given[other]} both say how many frames are sampled: give one"
        )


def at_rate(
    video: Any,
    fps: float,
    start_s: float | None,
    end_s: float | None,
    transform: Callable[[np.ndarray], np.ndarray],
    sink: FrameSink | None = None,
    sound: SoundOptions | None = None,
) -> VideoClip:
    """The frames of a video file at `fps` instants a second in a part of it, each prepared by `transform`.

    They go to `sink`, if it wants them. With `sound`, the clip has the sound of the part.

    Raises:
        InputError: if the part is empty or lies outside the video, or the frames would be too many.
    """
    if not isinstance(video, VideoReader):
        with open_video(video) as reader:
            return at_rate(reader, fps, start_s, end_s, transform, sink, sound)
    begin, end = start_s or 0.0, math.inf if end_s is None else end_s
    if not begin < min(end, video.info.duration_s):
        raise InputError(
            f"{video.info.source}: no part from {start_s} to {end_s} s; the video lasts {video.info.duration_s:.3f} s"
        )
    times_s = instants(video.info.duration_s, fps, start_s, end_s)
    return with_sound(video.frames_at(times_s, transform=transform, sink=sink), video, sound, start_s, end_s)
