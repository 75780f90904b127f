"""Pictures in memory to uint8 RGB: arrays, tensors and PIL images, whatever their numbers and their order of axes.

T pictures, H W height and width, K colours of a pixel: 1 grey, 3 colour, 4 colour with alpha
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from mmllm.errors import InputError

COLOURS = (1, 3, 4)
_ROUNDING = 1e-3
"""Float pixels may pass 0 and 1 by so much; a resize in half precision does that."""


def is_picture(value: Any) -> bool:
    """Whether a value in memory is one picture: a PIL image, or an array or tensor of two or three axes."""
    return isinstance(value, Image.Image) or (isinstance(value, (np.ndarray, torch.Tensor)) and value.ndim in (2, 3))


def rgb(picture: Any) -> np.ndarray:
    """uint8 (H W 3) of one picture; see `rgb_pictures`."""
    return rgb_pictures([picture])[0]


def rgb_pictures(pictures: Sequence[Any]) -> list[np.ndarray]:
    """uint8 (H W 3) of each picture, upright; transparent pixels are laid on black.

    Arrays and tensors are (H W), (H W K) or (K H W). Whole numbers up to 255 are bytes, those up to 65535 have 16 bits.
    Floats are from 0 to 1, or from 0 to 255. The numbers of all pictures are looked at together, so that a dark frame
    is read like the others of its video.

    Raises:
        InputError: if a picture is something else, or its numbers are in no such range.
    """
    arrays = [_array(picture) for picture in pictures]
    # step 1: one range for all pictures that hold the same kind of numbers
    bounds: dict[np.dtype[Any], tuple[float, float]] = {}
    for array in arrays:
        if array.dtype not in (np.uint8, np.bool_):
            low, high = float(array.min()), float(array.max())
            lowest, highest = bounds.get(array.dtype, (low, high))
            # a NaN stays whatever it is compared with, and is refused below
            bounds[array.dtype] = (float(np.minimum(low, lowest)), float(np.maximum(high, highest)))
    # step 2: bytes, then colours
    return [_three_colours(_bytes(array, bounds.get(array.dtype))) for array in arrays]


def _array(picture: Any) -> np.ndarray:
    """H W K of any kind of number."""
    if isinstance(picture, Image.Image):
        picture = _of_pil(picture)
    elif isinstance(picture, torch.Tensor):
        if picture.layout != torch.strided or picture.is_meta:
            raise InputError("a tensor of pixels must be dense and hold data, not sparse or on the device 'meta'")
        cpu = picture.detach().cpu()
        picture = (cpu.float() if cpu.is_floating_point() else cpu).numpy()
    if not isinstance(picture, np.ndarray):
        raise InputError(f"a picture is a PIL image, an array or a tensor, not {type(picture).__name__}")
    if picture.dtype.kind not in "biuf":
        raise InputError(f"pixels must be whole numbers or floats, not {picture.dtype}")
    if picture.ndim == 2 and picture.size:
        return picture[..., None]
    if picture.ndim == 3 and picture.size and picture.shape[2] in COLOURS:
        return picture
    if picture.ndim == 3 and picture.size and picture.shape[0] in COLOURS:
        return picture.transpose(1, 2, 0)
    raise InputError(f"a picture must be (H W), (H W K) or (K H W) with 1, 3 or 4 colours K, not {picture.shape}")


def _of_pil(image: Image.Image) -> np.ndarray:
    """The pixels of a PIL image turned upright by its EXIF entry: grey in 16 or more bits, RGB or RGBA."""
    try:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I;16"):
            return (np.asarray(upright) >> 8).astype(np.uint8)
        if upright.mode in ("I", "F"):
            return np.asarray(upright)
        if upright.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in upright.info:
            return np.asarray(upright.convert("RGBA"))
        return np.asarray(upright.convert("RGB"))
    except ValueError as problem:
        raise InputError(f"cannot read an image of PIL's mode {image.mode!r}: {problem}") from None


def _bytes(array: np.ndarray, bounds: tuple[float, float] | None) -> np.ndarray:
    """uint8 of the same shape; `bounds` are the lowest and the highest number of all pictures of this kind."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    assert bounds is not None
    low, high = bounds
    if array.dtype.kind == "f":
        if low >= -_ROUNDING and high <= 1 + _ROUNDING:
            return np.rint(array.clip(0, 1) * 255).astype(np.uint8)
        if low >= 0 and 2 <= high <= 255:
            return np.rint(array).astype(np.uint8)
        raise InputError(
            f"float pixels must be from 0 to 1, or from 0 to 255; these are from {low:.4g} to {high:.4g}. Give "
            "pictures as they were before they were normalised"
        )
    if low < 0 or high > 65535:
        raise InputError(
            f"pixels of type {array.dtype} must be from 0 to 255, or to 65535 for 16 bits; these are from {low:.0f} to "
            f"{high:.0f}"
        )
    return (array if high <= 255 else array >> 8).astype(np.uint8)


def _three_colours(pixels: np.ndarray) -> np.ndarray:
    """uint8 (H W 3) of uint8 (H W K)."""
    if pixels.shape[2] == 1:
        return np.repeat(pixels, 3, axis=2)
    if pixels.shape[2] == 4:
        colours, alpha = pixels[..., :3].astype(np.uint16), pixels[..., 3:]
        return ((colours * alpha + 127) // 255).astype(np.uint8)
    return pixels
