"""Readers of videos that are lists of pictures: a folder of numbered images, or arrays in memory.

n frames, H W height width
"""

from __future__ import annotations

import re
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
from mmllm.video.errors import LimitExceeded, NoFrames, VideoDecodeError, VideoOpenError
from mmllm.video.info import VideoInfo
from mmllm.video.limits import VideoLimits

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass(frozen=True, kw_only=True)
class FrameFolder:
    """A folder of numbered images, which are the frames of a video at a constant rate."""

    path: str | Path
    fps: float
    """Images for each second of the video. LITA's folders have 5."""

    def __post_init__(self) -> None:
        require(np.isfinite(self.fps) and self.fps > 0, self, "fps", "a positive number of frames a second")


class PictureListReader(VideoReader):
    """Reads frames at a constant rate from a list of image files or arrays."""

    def __init__(self, source: str, pictures: Sequence[Any], fps: float, limits: VideoLimits, backend: str) -> None:
        if not (np.isfinite(fps) and fps > 0):
            raise InputError(f"{source}: fps must be a positive number of frames a second, not {fps}")
        if len(pictures) == 0:
            raise NoFrames(f"{source}: it has no frames")
        limits.check_frames(source, len(pictures))
        limits.check_duration(source, len(pictures) / fps)
        self._source, self._pictures, self._fps, self.limits, self._backend = source, pictures, fps, limits, backend
        self._times_s = np.arange(len(pictures)) / fps
        self._height, self._width = self._load(pictures[0]).shape[:2]

    @property
    def info(self) -> VideoInfo:
        count = len(self._times_s)
        return VideoInfo(
            source=self._source,
            backend=self._backend,
            container=self._backend,
            codec="pictures",
            pixel_format="rgb24",
            width=self._width,
            height=self._height,
            coded_width=self._width,
            coded_height=self._height,
            duration_s=count / self._fps,
            start_s=0.0,
            num_frames=count,
            average_fps=self._fps,
            variable_rate=False,
            time_estimated=False,
            hdr=False,
            rotation=0,
            mirrored=False,
            stream=0,
            streams=(f"0 video pictures {self._width}x{self._height}",),
            declared_frames=count,
            first_frame_s=float(self._times_s[0]),
            last_frame_s=float(self._times_s[-1]),
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
        NoFrames: if it holds no image.
    """
    path = Path(folder.path)
    if not path.is_dir():
        raise VideoOpenError(f"{path}: not a folder of images")
    images = sorted(
        (
            file
            for file in path.iterdir()
            if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file() and not file.name.startswith(".")
        ),
        key=lambda file: [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", file.name)],
    )
    if not images:
        raise NoFrames(f"{path}: the folder holds no images ({', '.join(IMAGE_SUFFIXES)})")
    images = [regular_file(image, inside=inside) for image in images]
    return PictureListReader(str(path), images, folder.fps, limits, "folder")


def load_image(path: str | Path, limits: VideoLimits) -> np.ndarray:
    """uint8 RGB (H W 3) of an image file.

    The image is turned upright by its EXIF entry. Transparent pixels are laid on black. Of an animation, the first
    picture is taken.

    Raises:
        LimitExceeded: if it has too many pixels; no memory of that size is allocated.
        VideoDecodeError: if it cannot be decoded.
    """
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                limits.check_size(str(path), *image.size)
                upright = ImageOps.exif_transpose(image)
                if upright.mode.startswith("I;16") or upright.mode == "I":
                    return np.repeat((np.asarray(upright, dtype=np.uint32) >> 8).astype(np.uint8)[..., None], 3, axis=2)
                if upright.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in upright.info:
                    rgba = upright.convert("RGBA")
                    upright = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba)
                return np.asarray(upright.convert("RGB"))
    except LimitExceeded:
        raise
    except Image.DecompressionBombError as problem:
        raise LimitExceeded(f"{path}: {problem}") from None
    except Exception as problem:  # Pillow's decoders raise many types of errors on damaged data
        raise VideoDecodeError(f"{path}: not a readable image: {problem}") from None


def resized(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """The picture (uint8 H W 3) at another height and width, bilinear."""
    if pixels.shape[:2] == (height, width):
        return pixels
    from PIL import Image

    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
