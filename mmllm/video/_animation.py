"""Animated images that FFmpeg does not read well: WebP and PNG. Pillow decodes them; each picture has its own time.

n pictures, H W height width
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from mmllm.errors import InputError
from mmllm.video._open_options import OpenOptions
from mmllm.video._picture_list import plain_info, resized
from mmllm.video._reader import VideoReader
from mmllm.video._sources import MediaFile
from mmllm.video.errors import NoFrames, VideoDecodeError, VideoError, VideoTruncated
from mmllm.video.info import VideoInfo
from mmllm.video.limits import Deadline
from mmllm.video.still_images import opened_image, rgb_of

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

_SHORTEST_DELAY_S, _DEFAULT_DELAY_S = 0.011, 0.1
"""Browsers show a picture with a shorter delay, or none, for 0.1 s."""


def animation_of(media: MediaFile) -> str:
    """`webp` or `apng` for an animated image, else an empty text."""
    head = media.head
    if head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and len(head) > 20 and head[20] & 2:
        return "webp"
    if head[:8] == b"\x89PNG\r\n\x1a\n" and _has_control_chunk(head):
        return "apng"
    return ""


def _has_control_chunk(head: bytes) -> bool:
    """Whether a PNG file says before its first picture that it is an animation."""
    position = 8
    while position + 8 <= len(head):
        kind = head[position + 4 : position + 8]
        if kind in (b"acTL", b"IDAT"):
            return kind == b"acTL"
        position += 12 + int.from_bytes(head[position : position + 4], "big")
    return False


class AnimationReader(VideoReader):
    """Reads an animated WebP or PNG image. Opening decodes it once, because only that shows the pictures' delays."""

    def __init__(self, media: MediaFile, kind: str, options: OpenOptions) -> None:
        if options.stream:
            raise InputError(f"{media.name}: an animated image has stream 0 only, not {options.stream}")
        self._media, self._kind, self.limits = media, kind, options.limits
        self._closed = False
        if kind == "webp":  # Pillow allocates a canvas of this size when it opens the file
            width, height = (1 + int.from_bytes(media.head[at : at + 3], "little") for at in (24, 27))
            self.limits.check_size(media.name, width, height)
        delays_s, self._declared = [], 0
        for _, image in self._pictures():
            self._width, self._height = image.size
            delay_s = float(image.info.get("duration") or 0) / 1000
            delays_s.append(delay_s if delay_s >= _SHORTEST_DELAY_S else _DEFAULT_DELAY_S)
        if not delays_s:
            raise NoFrames(f"{media.name}: none of its pictures can be decoded")
        ends_s = np.cumsum(delays_s)
        self._times_s, self._duration_s = np.concatenate([[0.0], ends_s[:-1]]), float(ends_s[-1])
        self.limits.check_duration(media.name, self._duration_s)
        if len(delays_s) < self._declared:
            missing = f"{media.name}: cut short: {len(delays_s)} of {self._declared} declared frames can be decoded"
            if options.strict:
                raise VideoDecodeError(missing)
            warnings.warn(missing, VideoTruncated, stacklevel=4)

    @property
    def info(self) -> VideoInfo:
        return plain_info(
            source=self._media.name,
            backend="pillow",
            container=self._kind,
            codec=self._kind,
            size=(self._height, self._width),
            times_s=self._times_s,
            duration_s=self._duration_s,
            declared=self._declared,
        )

    @property
    def times_s(self) -> np.ndarray:
        return self._times_s

    def decode(self, indices: np.ndarray, size: tuple[int, int] | None) -> Iterator[tuple[int, np.ndarray]]:
        if self._closed:
            raise VideoDecodeError(f"{self._media.name}: the reader is closed")
        if len(indices) == 0:
            return
        height, width = size or (self._height, self._width)
        requested = set(indices.tolist())
        for number, image in self._pictures():
            if number in requested:
                yield number, resized(rgb_of(image), height, width)
            if number >= indices[-1]:
                return

    def renew_deadline(self) -> None:
        self._running.restart()

    def close(self) -> None:
        self._closed = True

    def _pictures(self) -> Iterator[tuple[int, PilImage]]:
        """Number and image of each picture, decoded, up to the first one that is damaged."""
        from PIL import Image

        source: Any = self._media.path or self._media.stream()
        deadline = self._running = Deadline(self._media.name, self.limits.cpu_s)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            try:
                image = opened_image(source)
                first = 1 if image.info.get("default_image") else 0  # a picture for viewers that cannot animate
                self.limits.check_size(self._media.name, *image.size)
                self._declared = getattr(image, "n_frames", 1) - first
                self.limits.check_frames(self._media.name, self._declared)
            except VideoError:
                raise
            except Exception as problem:  # Pillow's decoders raise many types of errors on damaged data
                raise VideoDecodeError(f"{self._media.name}: not a readable {self._kind}: {problem}") from None
        with image:
            for number in range(self._declared):
                deadline.check("decoding")
                try:
                    image.seek(first + number)
                    image.load()
                except Exception:  # the same; pictures before the damage are used
                    return
                yield number, image
