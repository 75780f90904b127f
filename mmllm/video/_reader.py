"""The interface of all video readers: frames by time, by index, or all of them.

n frames in the video, T requested frames, H W C height width colours
"""

from __future__ import annotations

import abc
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np

from mmllm.errors import InputError
from mmllm.tokens import VideoClip
from mmllm.video import sampling
from mmllm.video.audio import Sound, SoundOptions
from mmllm.video.errors import VideoDecodeError
from mmllm.video.frame_sink import FrameSink
from mmllm.video.info import VideoInfo
from mmllm.video.limits import VideoLimits

Size = int | tuple[int, int]
"""Length of the shorter edge in pixels, or (height, width)."""
Transform = Callable[[np.ndarray], np.ndarray]
"""Turns a uint8 frame (H W 3) into another array; applied as soon as a frame is decoded."""

_BATCH_FRAMES = 16


class IndexChanged(Exception):
    """Decoding has shown that the file's frames differ from the index; the reader has corrected the index."""


class VideoReader(abc.ABC):
    """An open video. Close it, or use it in a `with` statement; one thread at a time."""

    limits: VideoLimits

    @property
    @abc.abstractmethod
    def info(self) -> VideoInfo:
        """Length, rate, size and coding of the video. Decoding a damaged file may correct them."""

    @property
    @abc.abstractmethod
    def times_s(self) -> np.ndarray:
        """float64, n: when each frame is shown, in seconds on a player's clock. The first may be above 0."""

    @abc.abstractmethod
    def decode(self, indices: np.ndarray, size: tuple[int, int] | None) -> Iterator[tuple[int, np.ndarray]]:
        """Index and picture (uint8 H W 3, upright, of `size` or of the video's own) of some frames.

        Args:
            indices: int64, ascending, without repetition, each below n.
            size: height and width of the pictures; None for the video's own.

        Raises:
            IndexChanged: if the frames differ from the index; the caller must choose indices again.
        """

    def decode_all(self, size: tuple[int, int] | None) -> Iterator[tuple[float, np.ndarray]]:
        """Time and picture of every frame that can be decoded, in the order they are shown."""
        times_s = self.times_s
        for first in range(0, len(times_s), _BATCH_FRAMES):
            indices = np.arange(first, min(first + _BATCH_FRAMES, len(times_s)))
            for index, picture in list(self.decode(indices, size)):  # a list, so no deadline counts the caller's time
                yield float(times_s[index]), picture

    def sound(
        self, options: SoundOptions | None = None, *, start_s: float | None = None, end_s: float | None = None
    ) -> Sound | None:
        """The sound of the video or a part of it, mono at 16 kHz; None without sound, as for pictures alone.

        Args:
            options: which track and channel.
            start_s, end_s: the part, in seconds on a player's clock.

        Raises:
            InputError: if there is no such track, or the part is empty or lies outside the video.

        Warns:
            SoundDamaged: if a part of the sound cannot be decoded; it is silent.
        """
        return None

    def renew_deadline(self) -> None:  # noqa: B027 - a list of pictures has no such limit
        """Starts the limit of time of the running `decode` anew: its caller has finished a piece of the video."""

    @abc.abstractmethod
    def close(self) -> None:
        """Releases the file and the decoder. A second call does nothing."""

    def damage(self) -> Mapping[str, Any]:
        """Counts of damage so far, such as `decode_errors` and `corrupt_frames`; empty if there is none."""
        return {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self.times_s)

    def frames_by_index(
        self, indices: Sequence[int] | np.ndarray, *, size: Size | None = None, transform: Transform | None = None
    ) -> VideoClip:
        """The frames with these numbers, in the requested order. Frames are counted in the order they are shown.

        Args:
            indices: 0 for the first frame, -1 for the last. Repetitions are marked as not `valid`.
            size: resize while decoding: the shorter edge in pixels, or (height, width).
            transform: applied to each frame as it is decoded, so that memory holds its results only.

        Raises:
            InputError: if an index is out of range.
            VideoDecodeError, LimitExceeded, VideoTimeout: if the frames cannot be read, or not within the limits.
        """
        requested = np.array([_whole(index) for index in indices], dtype=np.int64)
        return self._planned(lambda: self._checked(requested), size, transform)

    def frames_at(
        self,
        times_s: Sequence[float] | np.ndarray,
        *,
        size: Size | None = None,
        transform: Transform | None = None,
        sink: FrameSink | None = None,
    ) -> VideoClip:
        """The frames nearest to these times, in the requested order.

        Args:
            times_s: seconds on a player's clock, from 0 to the video's duration; ascending if there is a sink.
            size, transform: as for `frames_by_index`.
            sink: as for `sample_uniform`.

        Raises:
            InputError: if a time is not in the video.
        """
        requested_s = np.asarray(times_s, dtype=np.float64).reshape(-1)
        return self._planned(lambda: self._nearest(requested_s), size, transform, sink)

    def sample_uniform(
        self,
        frames: int,
        *,
        start_s: float | None = None,
        end_s: float | None = None,
        size: Size | None = None,
        transform: Transform | None = None,
        sink: FrameSink | None = None,
        rule: sampling.FrameRule = sampling.UNIFORM,
    ) -> VideoClip:
        """T frames spread evenly over the video or a part of it, by LITA's rule: see `sampling.uniform_by_index`.

        Args:
            frames: T.
            start_s, end_s: the part, in seconds.
            size, transform: as for `frames_by_index`.
            sink: takes the frames as they are decoded, if it wants them. The clip then holds no pixels: its frames are
                (T 0 0 3).
            rule: another rule than LITA's.

        Raises:
            InputError: if the part is empty or lies outside the video.
        """

        def plan() -> np.ndarray:
            first, last = self._part(start_s, end_s)
            return first + rule.indices(last - first + 1, self.info.average_fps, frames)

        return self._planned(plan, size, transform, sink)

    def iterate(
        self, chunk: int, *, size: Size | None = None, transform: Transform | None = None
    ) -> Iterator[VideoClip]:
        """All frames that can be decoded, in order, in clips of `chunk` frames; the last clip may be shorter."""
        if chunk < 1:
            raise InputError(f"chunk must be at least 1 frame, not {chunk}")
        height_width = self._height_width(size)
        times_s: list[float] = []
        pictures: list[np.ndarray] = []
        for time_s, picture in self.decode_all(height_width):
            times_s.append(time_s)
            pictures.append(picture if transform is None else transform(picture))
            if len(pictures) == chunk:
                yield self._clip(np.stack(pictures), np.array(times_s))
                times_s, pictures = [], []
        if pictures:
            yield self._clip(np.stack(pictures), np.array(times_s))

    def _planned(
        self,
        plan: Callable[[], np.ndarray],
        size: Size | None,
        transform: Transform | None,
        sink: FrameSink | None = None,
    ) -> VideoClip:
        """The clip of the indices that `plan` returns; `plan` is called again each time the index changes."""
        for _ in range(3):  # with the index that the packets declare, then with corrected ones
            try:
                indices = plan()
                if sink is not None and sink.takes(len(indices)):
                    return self._pour(indices, size, transform, sink)
                return self._read(indices, size, transform)
            except IndexChanged:
                continue
        raise VideoDecodeError(f"{self.info.source}: its frames change each time that it is decoded")

    def _read(self, indices: np.ndarray, size: Size | None, transform: Transform | None) -> VideoClip:
        """The clip of these indices, which may be in any order and repeated. Each frame is decoded once."""
        height_width = self._height_width(size)
        height, width = height_width or (self.info.height, self.info.width)
        if transform is None:
            self.limits.check_returned(self.info.source, len(indices), height, width)
        unique, row_of_index = np.unique(indices, return_inverse=True)
        pictures = np.zeros((0, height, width, 3), dtype=np.uint8)
        remaining = {int(index): row for row, index in enumerate(unique)}
        for index, frame in self.decode(unique, height_width):
            picture = frame if transform is None else transform(frame)
            if len(remaining) == len(unique):  # the first picture decides shape and dtype
                self.limits.check_returned(self.info.source, len(indices), *picture.shape[:2])
                pictures = np.empty((len(unique), *picture.shape), dtype=picture.dtype)
            pictures[remaining.pop(index)] = picture
        if remaining:
            raise VideoDecodeError(
                f"{self.info.source}: {len(remaining)} frames cannot be decoded; the first is {min(remaining)}"
            )
        if len(unique) != len(indices) or (row_of_index[1:] < row_of_index[:-1]).any():
            pictures = pictures[row_of_index]
        return self._clip(
            pictures,
            self.times_s[indices],
            valid=sampling.first_occurrences(indices),
            in_order=bool((np.diff(indices) >= 0).all()),
            indices=indices,
        )

    def _pour(self, indices: np.ndarray, size: Size | None, transform: Transform | None, sink: FrameSink) -> VideoClip:
        """Gives the frames of ascending indices to a sink, in their order, and returns their clip without pixels."""
        assert (np.diff(indices) >= 0).all(), "a sink takes frames in the order of time"
        unique, times = np.unique(indices, return_counts=True)
        early: dict[int, np.ndarray] = {}  # frames that came out before an earlier one did
        position = 0  # in `unique`, of the frame whose turn it is
        for index, frame in self.decode(unique, self._height_width(size)):
            early[index] = frame if transform is None else transform(frame)
            while position < len(unique) and (picture := early.pop(int(unique[position]), None)) is not None:
                for _ in range(times[position]):
                    if sink.put(picture):
                        self.renew_deadline()
                position += 1
            waiting = next(iter(early.values()), np.empty((0, 0, 3), dtype=np.uint8))
            self.limits.check_returned(self.info.source, len(early), *waiting.shape[:2])
        if position < len(unique):
            missing = len(unique) - position - len(early)
            raise VideoDecodeError(
                f"{self.info.source}: {missing} frames cannot be decoded; the first is {unique[position]}"
            )
        return self._clip(
            np.empty((len(indices), 0, 0, 3), dtype=np.uint8),
            self.times_s[indices],
            valid=sampling.first_occurrences(indices),
            indices=indices,
        )

    def _clip(
        self,
        pictures: np.ndarray,
        times_s: np.ndarray,
        *,
        valid: np.ndarray | None = None,
        in_order: bool = True,
        indices: np.ndarray | None = None,
    ) -> VideoClip:
        metadata: dict[str, Any] = {
            "start_s": self.info.start_s,
            "average_fps": self.info.average_fps,
            "time_estimated": self.info.time_estimated,
            "backend": self.info.backend,
            **self.damage(),
        }
        if indices is not None:
            metadata["indices"] = indices.tolist()
        return VideoClip(
            frames=pictures,
            times_s=times_s,
            duration_s=self.info.duration_s,
            valid=valid,  # type: ignore[arg-type]
            in_order=in_order,
            source=self.info.source,
            metadata=metadata,
            original_size=(self.info.height, self.info.width),
        )

    def _checked(self, indices: np.ndarray) -> np.ndarray:
        count = len(self.times_s)
        if len(indices) and not (-count <= indices.min() and indices.max() < count):
            wrong = indices[(indices < -count) | (indices >= count)][0]
            raise InputError(f"{self.info.source}: no frame {wrong}; frames are 0 to {count - 1}, or -{count} to -1")
        return np.where(indices < 0, indices + count, indices)

    def _nearest(self, requested_s: np.ndarray) -> np.ndarray:
        end_s = max(self.info.duration_s, float(self.times_s[-1])) + 1e-3
        wrong = ~((requested_s >= -1e-3) & (requested_s <= end_s))
        if wrong.any():
            raise InputError(
                f"{self.info.source}: no frame at {requested_s[wrong][0]} s; times are from 0 to {end_s:.3f} s"
            )
        return sampling.nearest(self.times_s, requested_s)

    def _part(self, start_s: float | None, end_s: float | None) -> tuple[int, int]:
        """First and last index of the frames in a part of the video. If it has none, the frame shown at its start."""
        begin, end = 0.0 if start_s is None else start_s, np.inf if end_s is None else end_s
        if not (0 <= begin < end) or begin > self.info.duration_s:
            part = f"from {begin:g} s" + ("" if end_s is None else f" to {end_s:g} s")
            raise InputError(f"{self.info.source}: no part {part}; the video lasts {self.info.duration_s:.3f} s")
        times_s = self.times_s
        first = int(np.searchsorted(times_s, begin - 1e-9))
        last = int(np.searchsorted(times_s, end + 1e-9)) - 1
        if last < first:
            first = last = max(0, int(np.searchsorted(times_s, begin, side="right")) - 1)
        return first, last

    def _height_width(self, size: Size | None) -> tuple[int, int] | None:
        """Height and width in pixels that `size` means for this video."""
        if size is None:
            return None
        edges = (size,) if isinstance(size, int) else tuple(size)
        if len(edges) > 2 or any(_whole(edge) < 1 for edge in edges):
            raise InputError(f"size must be the shorter edge or (height, width), in positive pixels, not {size}")
        if len(edges) == 2:
            height, width = edges
        else:
            shorter = min(self.info.height, self.info.width)
            height, width = (max(1, round(edge * edges[0] / shorter)) for edge in (self.info.height, self.info.width))
        self.limits.check_size(self.info.source, width, height)
        return height, width


def _whole(index: Any) -> int:
    try:
        return operator.index(index)
    except TypeError:
        raise InputError(f"a frame's index or an edge must be a whole number, not {index!r}") from None
