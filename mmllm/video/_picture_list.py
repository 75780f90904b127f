"""Readers of videos that are lists of pictures: a folder of numbered images, or arrays in memory.

n frames, H W height width
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmllm.errors import InputError
from mmllm.fields import require
from mmllm.video._reader import VideoReader
from mmllm.video._sources import regular_file
from mmllm.video.errors import FramesMissing, NoFrames, VideoOpenError
from mmllm.video.frame_files import frame_files
from mmllm.video.info import VideoInfo
from mmllm.video.limits import VideoLimits
from mmllm.video.names import existing
from mmllm.video.names import nearest as nearest_name
from mmllm.video.still_images import load_image

_MOST_SLOTS = 1 << 60


@dataclass(frozen=True, kw_only=True)
class FrameFolder:
    """A folder of numbered images, which are the frames of a video at a constant rate."""

    path: str | Path
    fps: float
    """Images for each second of the video. LITA's folders have 5."""

    def __post_init__(self) -> None:
        require(np.isfinite(self.fps) and self.fps > 0, self, "fps", "a positive number of frames a second")


class PictureListReader(VideoReader):
    """Reads frames at a constant rate from a list of image files or arrays.

    Args:
        source: the name in messages.
        pictures: paths of images, or arrays uint8 (H W 3).
        fps: pictures a second.
        limits: limits of memory and time.
        backend: the name in `VideoInfo`.
        slots: the place of each picture, if pictures are missing; by default they are counted.
    """

    def __init__(
        self,
        source: str,
        pictures: Sequence[Any],
        fps: float,
        limits: VideoLimits,
        backend: str,
        slots: Sequence[int] | None = None,
    ) -> None:
        if not (np.isfinite(fps) and fps > 0):
            raise InputError(f"{source}: fps must be a positive number of frames a second, not {fps}")
        if len(pictures) == 0:
            raise NoFrames(f"{source}: it has no frames")
        slots = range(len(pictures)) if slots is None else slots
        limits.check_frames(source, len(pictures))
        limits.check_duration(source, min(slots[-1] + 1, _MOST_SLOTS) / fps)
        self._source, self._pictures, self.limits, self._backend = source, pictures, limits, backend
        self._times_s, self._duration_s = np.array(slots, dtype=np.float64) / fps, (slots[-1] + 1) / fps
        self._height, self._width = self._load(pictures[0]).shape[:2]

    @property
    def info(self) -> VideoInfo:
        return plain_info(
            source=self._source,
            backend=self._backend,
            container=self._backend,
            codec="pictures",
            size=(self._height, self._width),
            times_s=self._times_s,
            duration_s=self._duration_s,
            declared=len(self._times_s),
        )

    @property
    def times_s(self) -> np.ndarray:
        return self._times_s

    def decode(self, indices: np.ndarray, size: tuple[int, int] | None) -> Iterator[tuple[int, np.ndarray]]:
        height, width = size or (self._height, self._width)
        for index in indices.tolist():
            yield index, resized(self._load(self._pictures[index]), height, width)

    def close(self) -> None:
        self._pictures = self._pictures[:0]

    def _load(self, picture: Any) -> np.ndarray:
        """uint8 (H W 3) of one entry of the list."""
        if isinstance(picture, Path):
            return load_image(picture, self.limits)
        pixels = np.asarray(picture)
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
            raise InputError(f"{self._source}: a frame must be uint8 (H W 3), not {pixels.dtype} {pixels.shape}")
        self.limits.check_size(self._source, pixels.shape[1], pixels.shape[0])
        return pixels


def open_folder(folder: FrameFolder, limits: VideoLimits, *, inside: str | Path | None = None) -> PictureListReader:
    """A reader of a folder of numbered images, in the order of their numbers.

    Raises:
        VideoOpenError: if the folder does not exist.
        NoFrames: if it holds no image, or an image without a byte.

    Warns:
        FramesMissing: if numbers are missing among the names. Times follow the numbers.
    """
    path = existing(folder.path) or Path(folder.path)
    if not path.is_dir():
        raise VideoOpenError(f"{path}: not a folder of images{nearest_name(path)}")
    try:
        frames = frame_files(path)
    except OSError as problem:
        raise VideoOpenError(f"{path}: {problem.strerror or problem}") from None
    if frames.problem:
        raise NoFrames(f"{path}: {frames.problem}")
    if frames.gaps:
        warnings.warn(f"{path}: {frames.gaps}", FramesMissing, stacklevel=4)
    images = [regular_file(image, inside=inside) for image in frames.files]
    return PictureListReader(str(path), images, folder.fps, limits, "folder", frames.slots)


def plain_info(
    *,
    source: str,
    backend: str,
    container: str,
    codec: str,
    size: tuple[int, int],
    times_s: np.ndarray,
    duration_s: float,
    declared: int,
) -> VideoInfo:
    """The facts about upright RGB pictures that are shown at these times; `size` is their height and width."""
    count, (height, width) = len(times_s), size
    gap_s = times_s[-1] / max(1, count - 1)
    return VideoInfo(
        source=source,
        backend=backend,
        container=container,
        codec=codec,
        pixel_format="rgb24",
        width=width,
        height=height,
        coded_width=width,
        coded_height=height,
        duration_s=duration_s,
        start_s=0.0,
        num_frames=count,
        average_fps=count / duration_s,
        variable_rate=count > 2 and bool(np.abs(times_s - gap_s * np.arange(count)).max() > gap_s),
        time_estimated=False,
        hdr=False,
        rotation=0,
        mirrored=False,
        stream=0,
        streams=(f"0 video {codec} {width}x{height}",),
        declared_frames=declared,
        truncated=declared > count,
        first_frame_s=float(times_s[0]),
        last_frame_s=float(times_s[-1]),
    )


def resized(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """The picture (uint8 H W 3) at another height and width, bilinear."""
    if pixels.shape[:2] == (height, width):
        return pixels
    from PIL import Image

    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
