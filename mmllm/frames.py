"""Decoded frames to an encoder's input: resize, crop or pad, normalise. The constants travel with the weights.

T frames, H W height width as decoded, S side of the encoder's square input
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps

from mmllm.errors import InputError
from mmllm.fields import require

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class FrameTransform:
    """Turns uint8 frames into an encoder's input, pixel for pixel as PIL would."""

    size: int
    """Side of the square the encoder sees, in pixels."""
    fit: Literal["crop", "pad", "squash"] = "crop"
    """crop: shortest edge to `size`, centre cut out. pad: the whole frame on a square of the mean colour.
    squash: both edges to `size`, whatever the aspect ratio."""
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def __post_init__(self) -> None:
        require(self.size > 0, self, "size", "a positive number of pixels")
        require(all(value > 0 for value in self.std), self, "std", "positive")

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Normalised float32 (T 3 S S) of uint8 frames (T H W 3)."""
        pixels = np.stack([self.resized(frame) for frame in frames]) if len(frames) else self._none()
        pixels = pixels.astype(np.float32) * np.float32(1 / 255)
        mean, std = np.array(self.mean, dtype=np.float32), np.array(self.std, dtype=np.float32)
        return ((pixels - mean) / std).transpose(0, 3, 1, 2)

    def resized(self, frame: np.ndarray) -> np.ndarray:
        """uint8 (S S 3): one frame brought to the encoder's square, not yet normalised."""
        height, width = frame.shape[:2]
        if height == width == self.size:
            return frame
        image = Image.fromarray(frame)
        if self.fit == "squash":
            return np.asarray(image.resize((self.size, self.size), Image.Resampling.BICUBIC))
        if self.fit == "pad" and height != width:
            side = max(height, width)
            square = Image.new("RGB", (side, side), tuple(int(255 * value) for value in self.mean))
            square.paste(image, ((side - width) // 2, (side - height) // 2))
            image = square
        width, height = image.size
        if height <= width:
            scaled = (int(self.size * width / height), self.size)
        else:
            scaled = (self.size, int(self.size * height / width))
        image = image.resize(scaled, Image.Resampling.BICUBIC)
        left, top = (scaled[0] - self.size) // 2, (scaled[1] - self.size) // 2
        return np.asarray(image.crop((left, top, left + self.size, top + self.size)))

    def _none(self) -> np.ndarray:
        return np.zeros((0, self.size, self.size, 3), dtype=np.uint8)


def read_image(image: Any) -> np.ndarray:
    """uint8 H W 3, upright, of a path, a PIL image or an array.

    Raises:
        InputError: if it cannot be read.
    """
    if isinstance(image, np.ndarray):
        return image
    try:
        opened = image if isinstance(image, Image.Image) else Image.open(image)
        return np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    except (OSError, Image.DecompressionBombError) as problem:
        raise InputError(f"cannot read image {image}: {problem}") from None
