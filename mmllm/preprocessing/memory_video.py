"""Videos whose frames are in memory: when each is shown, by their rate or by metadata, and which of them are taken.

n frames given, T frames taken, H W height and width
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmllm.errors import InputError
from mmllm.fields import closest
from mmllm.preprocessing.pixels import COLOURS, is_picture, rgb_pictures
from mmllm.tokens import VideoClip
from mmllm.video import sampling
from mmllm.video.opening import VideoLimits

METADATA = ("total_num_frames", "fps", "width", "height", "duration", "video_backend", "frames_indices")
"""Fields of transformers' `VideoMetadata`."""
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def is_in_memory(video: Any) -> bool:
    """Whether a video is given by its frames: T H W K or T K H W, a list of pictures or image files, or one of these
    with its metadata in a pair, as vLLM gives them."""
    if isinstance(video, (np.ndarray, torch.Tensor)):
        return video.ndim == 4
    if isinstance(video, tuple) and len(video) == 2 and isinstance(video[1], Mapping):
        return is_in_memory(video[0])
    return isinstance(video, (list, tuple)) and len(video) > 0 and all(map(_is_frame, video))


def _is_frame(value: Any) -> bool:
    return is_picture(value) or (isinstance(value, (str, Path)) and str(value).lower().endswith(_IMAGE_SUFFIXES))


@dataclass(frozen=True, kw_only=True, eq=False)
class MemoryVideo:
    """Frames and their times."""

    frames: Sequence[Any]
    """Pictures, each H W K or K H W, or files of images."""
    times_s: np.ndarray
    """float64, n. When each frame is shown."""
    duration_s: float
    has_metadata: bool = False
    """Whether the times are from metadata; `fps` is then the rate of sampling."""

    def clip(
        self,
        indices: np.ndarray,
        transform: Callable[[np.ndarray], np.ndarray],
        read: Callable[[Any], np.ndarray],
    ) -> VideoClip:
        """The frames with these numbers (int64, T, ascending), each prepared by `transform`.

        Args:
            indices: which frames.
            transform: applied to uint8 (H W 3).
            read: opens a frame that is a file.
        """
        chosen, row = np.unique(indices, return_inverse=True)
        frames = [self.frames[int(index)] for index in chosen]
        pictures = rgb_pictures([read(frame) if isinstance(frame, (str, Path)) else frame for frame in frames])
        return VideoClip(
            frames=np.stack([transform(picture) for picture in pictures])[row],
            times_s=self.times_s[indices],
            duration_s=self.duration_s,
            valid=sampling.first_occurrences(indices),
            source=f"<{len(self.frames)} frames>",
            original_size=pictures[0].shape[:2],
        )

    def part(self, start_s: float | None, end_s: float | None) -> np.ndarray:
        """int64. Numbers of the frames in a part of the video; if it has none, the frame shown at its start.

        Raises:
            InputError: if the part is empty or lies outside the video.
        """
        begin, end = 0.0 if start_s is None else start_s, math.inf if end_s is None else end_s
        if not (0 <= begin < end) or begin > self.duration_s:
            raise InputError(f"no part from {start_s} to {end_s} s; the frames last {self.duration_s:.3f} s")
        inside = np.flatnonzero((self.times_s >= begin - 1e-9) & (self.times_s <= end + 1e-9))
        shown = max(0, int(np.searchsorted(self.times_s, begin, side="right")) - 1)
        return inside if len(inside) else np.array([shown])

    @property
    def rate(self) -> float:
        """Frames a second, on average."""
        span_s = float(self.times_s[-1] - self.times_s[0])
        return (len(self.times_s) - 1) / span_s if span_s > 0 else 1 / self.duration_s

    def at_rate(self, fps: float, start_s: float | None, end_s: float | None) -> np.ndarray:
        """int64, T. Numbers of the frames nearest to `fps` instants a second in a part of the video."""
        self.part(start_s, end_s)
        return sampling.nearest(self.times_s, instants(self.duration_s, fps, start_s, end_s))


def instants(duration_s: float, fps: float, start_s: float | None, end_s: float | None) -> np.ndarray:
    """float64, T. `fps` instants a second from `start_s`, up to `end_s` or the end of the video.

    Raises:
        InputError: if they would be too many.
    """
    begin = start_s or 0.0
    length_s = max(min(duration_s if end_s is None else end_s, duration_s) - begin, 1e-9)
    most = VideoLimits().frames
    if length_s * fps > most:
        raise InputError(f"fps={fps:g} of {length_s:.1f} s are {length_s * fps:.0f} frames; allowed are {most}")
    return begin + sampling.every(length_s, fps)


def memory_video(video: Any, *, fps: float | None = None, metadata: Any = None) -> MemoryVideo:
    """The frames with their times.

    Args:
        video: what `is_in_memory` accepts.
        fps: frames a second. Not read if there are metadata, where it is the rate of sampling.
        metadata: a mapping with fields of transformers' `VideoMetadata`.

    Raises:
        InputError: if the times do not follow from what is given.
    """
    if isinstance(video, tuple) and len(video) == 2 and isinstance(video[1], Mapping):
        if metadata is not None:
            raise InputError("a video has its metadata in a pair with its frames, and video_metadata beside them")
        video, metadata = video
    frames = _frames(video)
    times_s, duration_s = (
        _times_by_rate(len(frames), fps) if metadata is None else _times_by_metadata(len(frames), metadata)
    )
    VideoLimits().check_duration(f"<{len(frames)} frames>", duration_s)
    return MemoryVideo(frames=frames, times_s=times_s, duration_s=duration_s, has_metadata=metadata is not None)


def _frames(video: Any) -> Sequence[Any]:
    """The pictures of a video; for an array T H W K or T K H W."""
    if isinstance(video, (list, tuple)):
        return video
    if len(video) == 0:
        raise InputError(f"a video of no frames: {tuple(video.shape)}")
    if video.shape[3] not in COLOURS and video.shape[1] not in COLOURS:
        raise InputError(f"a video must be (T H W K) or (T K H W) with 1, 3 or 4 colours K, not {tuple(video.shape)}")
    return video


def _times_by_rate(count: int, fps: float | None) -> tuple[np.ndarray, float]:
    if fps is None:
        raise InputError(
            "frames in memory have no times: give fps, their frames a second, or video_metadata with fps (and "
            "frames_indices, if they are a choice of a video's frames)"
        )
    return np.arange(count) / fps, count / fps


def _times_by_metadata(count: int, metadata: Any) -> tuple[np.ndarray, float]:
    """Times (float64, n) and length in seconds of `count` frames."""
    if not isinstance(metadata, Mapping):
        raise InputError(f"video_metadata must be a mapping for each video, not {type(metadata).__name__}")
    if unknown := [name for name in metadata if name not in METADATA]:
        raise InputError(f"video_metadata has no {unknown[0]!r}; {closest(str(unknown[0]), METADATA)}")
    given = {name: value for name, value in metadata.items() if value is not None}
    numbers = {name: _positive(name, given[name]) for name in ("fps", "duration", "total_num_frames") if name in given}
    total, duration_s, fps = numbers.get("total_num_frames"), numbers.get("duration"), numbers.get("fps")
    if fps is None and total and duration_s:
        fps = total / duration_s
    if fps is None:
        raise InputError("video_metadata must give fps, or duration and total_num_frames")
    if "frames_indices" in given:
        indices = _ascending(given["frames_indices"], count)
    elif total is not None and total != count:
        raise InputError(
            f"{count} frames are given, and video_metadata has total_num_frames={total:g}: give frames_indices, the "
            "number of each frame in the video"
        )
    else:
        indices = np.arange(count, dtype=np.float64)
    length_s = duration_s or (total or indices[-1] + 1) / fps
    if indices[-1] / fps > length_s + 1e-3:
        raise InputError(f"the last frame is at {indices[-1] / fps:.3f} s, and the video lasts {length_s:.3f} s")
    return indices / fps, length_s


def _ascending(numbers: Any, count: int) -> np.ndarray:
    """float64, n. The number of each frame in its video."""
    try:
        indices = np.asarray(numbers, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError):
        indices = np.empty(0)
    if len(indices) != count or not (
        np.isfinite(indices).all() and (indices >= 0).all() and (np.diff(indices) >= 0).all()
    ):
        raise InputError(
            f"frames_indices must be {count} ascending numbers, one for each frame; there are {len(indices)}"
        )
    return indices


def _positive(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0 < value < math.inf:
        raise InputError(f"video_metadata: {name} must be a positive number, not {value!r:.80}")
    return float(value)
