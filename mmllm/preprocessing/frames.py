"""Decoded frames to an encoder's input: resize, crop or pad, normalise. The constants travel with the weights.

Images are resized by PIL, as they were when published numbers were made. Frames of videos are resized by PyTorch's
kernel for bytes instead, which is several times faster and differs from PIL by 1 of 255 here and there.

T frames, H W height width as decoded, S side of the encoder's square input
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmllm.errors import InputError
from mmllm.fields import require
from mmllm.preprocessing import narrow_frames
from mmllm.preprocessing.addresses import readable, resolved
from mmllm.preprocessing.pixels import rgb
from mmllm.video.names import nearest
from mmllm.video.still_images import opened_image

_MOST_THREADS = 8
_MOST_PIXELS = 2**26
"""Of the picture between a frame and the encoder's square; where it would be larger, `narrow_frames` goes without."""
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class FrameTransform:
    """Turns uint8 frames into an encoder's input."""

    size: int
    """Side of the square the encoder sees, in pixels."""
    fit: Literal["crop", "pad", "squash"] = "crop"
    """crop: shortest edge to `size`, centre cut out. pad: the whole frame on a square of the mean colour.
    squash: both edges to `size`, whatever the aspect ratio."""
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    video_resize: Literal["fast", "pil"] = "fast"
    """How frames of videos are resized; "pil" treats them as images, for numbers that must match to the last bit."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """How pixels between pixels are computed."""
    crop: float = 1.0
    """`size` as a share of the side to which a frame is resized; below 1, the middle is cut out of a larger picture."""
    middle: Literal["down", "nearest"] = "down"
    """Where the middle is if half a pixel is left: a pixel up and left, as transformers cuts, or at the nearest even
    pixel, as torchvision and timm do."""

    def __post_init__(self) -> None:
        require(self.size > 0, self, "size", "a positive number of pixels")
        require(all(value > 0 for value in self.std), self, "std", "positive")
        require(0 < self.crop <= 1, self, "crop", "above 0 and at most 1")
        require(self.crop == 1 or self.fit != "pad", self, "crop", "1 with fit = 'pad', which shows whole frames")

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Normalised float32 (T 3 S S) of uint8 images or frames (T H W 3), resized by PIL where they need it."""
        return self.normalised([self.resized(frame) for frame in frames])

    def video(self, frames: np.ndarray) -> np.ndarray:
        """Normalised float32 (T 3 S S) of a video's uint8 frames (T H W 3), resized as `video_resize` says.

        Frames are worked on side by side by as many threads as PyTorch may use.
        """
        out = self._empty(len(frames))
        scale, shift = self._constants()

        def prepare(frame: np.ndarray, slot: np.ndarray) -> None:
            visible, top, left = self._visible_part(frame)
            height, width = visible.shape[:2]
            if (height, width) != slot.shape[1:]:
                slot[:] = (self._colour * scale + shift)[:, None, None]
            _normalise(visible, slot[:, top : top + height, left : left + width], scale, shift)

        threads = min(torch.get_num_threads(), _MOST_THREADS, len(frames))
        if threads > 1:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(prepare, frames, out))
        else:
            for frame, slot in zip(frames, out, strict=True):
                prepare(frame, slot)
        return out

    def normalised(self, frames: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        """Normalised float32 (T 3 S S) of uint8 frames of the encoder's size (S S 3 each)."""
        out = self._empty(len(frames))
        for frame, slot in zip(frames, out, strict=True):
            _normalise(frame, slot, *self._constants())
        return out

    def resized(self, frame: np.ndarray) -> np.ndarray:
        """uint8 (S S 3): one image brought to the encoder's square by PIL, not yet normalised."""
        height, width = frame.shape[:2]
        if height == width == self.size == self._side:
            return frame
        if self._is_narrow(height, width):
            return self._narrow(frame)
        if self.fit == "pad":
            frame = _padded(frame, self._colour)
        scaled = self._scaled(*frame.shape[:2])
        return self._cut(_by_pil(frame, *scaled, self.interpolation))

    def video_frame(self, frame: np.ndarray) -> np.ndarray:
        """uint8 (S S 3): one frame of a video brought to the encoder's square, not yet normalised."""
        visible, top, left = self._visible_part(frame)
        height, width = visible.shape[:2]
        if height == width == self.size:
            return visible
        square = _filled(self.size, self.size, 0, self._colour)
        square[top : top + height, left : left + width] = visible
        return square

    def _visible_part(self, frame: np.ndarray) -> tuple[np.ndarray, int, int]:
        """What a frame shows in the encoder's square, its top and its left; all else has the colour of the padding."""
        height, width = frame.shape[:2]
        whole = height == width == self.size == self._side
        if whole or self.video_resize == "pil" or self._is_narrow(height, width):
            return self.resized(frame), 0, 0
        if self.fit == "pad" and height != width:
            return self._band(frame)
        scaled = self._scaled(height, width)
        top, left = (self._start(length) for length in scaled)
        cut = {"bottom": top + self.size, "right": left + self.size}
        return _by_torch(frame, *scaled, self.interpolation, **cut)[top:, left:], 0, 0

    def _is_narrow(self, height: int, width: int) -> bool:
        """Whether a frame is so long and narrow that the picture on the way to the square would be too large."""
        between = max(height, width) ** 2 if self.fit == "pad" else math.prod(self._scaled(height, width))
        return between > _MOST_PIXELS

    def _narrow(self, frame: np.ndarray) -> np.ndarray:
        """uint8 (S S 3): `resized` of a long narrow frame."""
        resampling = Image.Resampling[self.interpolation.upper()]
        if self.fit == "pad":
            return narrow_frames.whole(frame, self.size, self._colour, resampling)
        scaled = self._scaled(*frame.shape[:2])
        top, left = (self._start(length) for length in scaled)
        return narrow_frames.middle(frame, scaled, (top, left), self.size, resampling)

    @property
    def _colour(self) -> np.ndarray:
        return np.array([int(255 * value) for value in self.mean], dtype=np.uint8)

    @property
    def _side(self) -> int:
        """The side to which a frame is resized, before the middle is cut out."""
        return math.floor(self.size / self.crop)

    def _scaled(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of a resized image, before the middle is cut out."""
        if self.fit == "squash":
            return self._side, self._side
        shortest = min(height, width)
        return int(self._side * height / shortest), int(self._side * width / shortest)

    def _start(self, length: int) -> int:
        """The first line of the middle, of so many."""
        return (length - self.size) // 2 if self.middle == "down" else round((length - self.size) / 2)

    def _cut(self, frame: np.ndarray) -> np.ndarray:
        """The square in the middle."""
        top, left = (self._start(length) for length in frame.shape[:2])
        return frame[top : top + self.size, left : left + self.size]

    def _band(self, frame: np.ndarray) -> tuple[np.ndarray, int, int]:
        """The part of a resized padded square that is not all padding, its top and its left.

        It begins and ends where lines of the square and of its resized self coincide, so that resizing it alone gives
        what resizing the square gives.
        """
        side, axis = max(frame.shape[:2]), int(frame.shape[0] > frame.shape[1])
        length = frame.shape[axis]
        common = math.gcd(side, self.size)
        step, start = side // common, (side - length) // 2
        reach = math.ceil(2 * max(1, side / self.size)) + 1  # source lines that a resized one can depend on
        first = max(0, start - reach) // step
        last = -(-min(side, start + length + reach) // step)
        band = _filled((last - first) * step, side, axis, self._colour)
        _lines(band, axis, start - first * step, length)[:] = frame
        step = self.size // common
        lines = (last - first) * step
        if axis:
            return _by_torch(band, self.size, lines, self.interpolation), 0, first * step
        return _by_torch(band, lines, self.size, self.interpolation), first * step, 0

    def _empty(self, count: int) -> np.ndarray:
        return np.empty((count, 3, self.size, self.size), dtype=np.float32)

    def _constants(self) -> tuple[np.ndarray, np.ndarray]:
        """float32, 3 each: what a byte is multiplied with, and what is added then."""
        mean, std = np.array(self.mean), np.array(self.std)
        return (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)


def _normalise(frame: np.ndarray, out: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> None:
    """Writes uint8 H W 3 into float32 3 H W; a colour at a time, which NumPy does without a copy in between."""
    for colour in range(3):
        np.multiply(frame[..., colour], scale[colour], out=out[colour])
        np.add(out[colour], shift[colour], out=out[colour])


def _filled(lines: int, length: int, axis: int, colour: np.ndarray) -> np.ndarray:
    """One colour, as rows of that length (axis 0) or columns (axis 1)."""
    filled = np.empty((length, lines, 3) if axis else (lines, length, 3), dtype=np.uint8)
    filled[:] = np.tile(colour, (filled.shape[1], 1))  # whole rows are copied faster than pixels
    return filled


def _lines(image: np.ndarray, axis: int, start: int, count: int) -> np.ndarray:
    """Rows (axis 0) or columns (axis 1) of an image."""
    return image[:, start : start + count] if axis else image[start : start + count]


def _padded(frame: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """`frame` in the middle of a square of one colour."""
    side, axis = max(frame.shape[:2]), int(frame.shape[0] > frame.shape[1])
    square = _filled(side, side, axis, colour)
    _lines(square, axis, (side - frame.shape[axis]) // 2, frame.shape[axis])[:] = frame
    return square


def _by_pil(frame: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling[interpolation.upper()]))


def _by_torch(
    frame: np.ndarray,
    height: int,
    width: int,
    interpolation: str,
    *,
    bottom: int | None = None,
    right: int | None = None,
) -> np.ndarray:
    """`frame` resized to height and width; of that the lines and columns before `bottom` and `right`."""
    given = frame.shape[:2]
    # The stride of the only image tells PyTorch that the colours of a pixel lie side by side, which is its fast case.
    strides = (frame.size, 1, 3 * given[1], 3)
    pixels = _tensor(np.ascontiguousarray(frame)).as_strided((1, 3, *given), strides)  # 1 3 H W
    scaled, stops = (height, width), (bottom or height, right or width)
    shrinks = height < given[0] and width < given[1]
    if shrinks and stops != scaled:
        scales = [(full + 1e-6) / length for full, length in zip(scaled, given, strict=True)]  # PyTorch rounds down
        rows, columns = (math.ceil((stop + 3) / scale) + 1 for stop, scale in zip(stops, scales, strict=True))
        settings: dict[str, Any] = {"scale_factor": scales}
        pixels = pixels[:, :, :rows, :columns]  # a cubic reaches two resized lines further
    else:
        settings = {"size": scaled}
    resized = torch.nn.functional.interpolate(pixels, mode=interpolation, antialias=True, **settings)
    return resized[0, :, : stops[0], : stops[1]].permute(1, 2, 0).numpy()


def _tensor(frame: np.ndarray) -> Tensor:
    """The same memory as a tensor, or a copy where NumPy forbids writing to it."""
    return torch.from_numpy(frame if frame.flags.writeable else frame.copy())


def read_image(image: Any) -> np.ndarray:
    """uint8 H W 3, upright, of a path, bytes, a `data:` address, an open file, a PIL image, an array or a tensor.

    Arrays and PIL images are read as `mmllm.preprocessing.pixels.rgb_pictures` says.

    Raises:
        InputError: if it cannot be read.
    """
    if isinstance(image, (np.ndarray, Tensor, Image.Image)):
        return rgb(image)
    source = resolved(image)
    name = f"<{len(source)} bytes>" if isinstance(source, bytes) else source
    if isinstance(source, str) and source.lower().startswith(("http://", "https://")):
        raise InputError(f"cannot read image {name}: addresses are not fetched; download it and give the file")
    if not isinstance(source, (str, bytes, PathLike)) and not hasattr(source, "read"):
        raise InputError(f"an image is a path, bytes, a PIL image, an array or a tensor, not {type(source).__name__}")
    try:
        return rgb(opened_image(readable(source)))
    except InputError:
        raise
    except Exception as problem:  # Pillow's decoders raise many types of errors on damaged data
        hint = nearest(source) if isinstance(problem, FileNotFoundError) and not isinstance(source, bytes) else ""
        reason = getattr(problem, "strerror", None) or problem
        raise InputError(f"cannot read image {name!s:.200}: {reason}{hint}") from None
