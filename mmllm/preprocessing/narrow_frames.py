"""Long narrow frames brought to an encoder's square, without the large picture that stands in between otherwise.

    crop: a frame of 2 x 8,000 would be enlarged to S x 4,000 S       pad: one of 1 x 60,000 would be padded to a square

Only what the square shows is computed. Colours differ by 1 of 255 here and there, at sharp edges of tall padded frames
by a few.

H W height width as decoded, S side of the encoder's square input
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

_REACH = 2
"""Resized lines that a cubic looks to each side."""


def middle(
    frame: np.ndarray, scaled: tuple[int, int], start: tuple[int, int], size: int, resampling: Image.Resampling
) -> np.ndarray:
    """uint8 (S S 3): the square that begins at `start` of a frame, if that were resized to `scaled`.

    Args:
        frame: uint8, H W 3.
        scaled: height and width.
        start: the square's first line and column.
        size: S.
        resampling: how pixels between pixels are computed.
    """
    per_line, per_column = (given / full for given, full in zip(frame.shape[:2], scaled, strict=True))
    top, left = start
    box = (left * per_column, top * per_line, (left + size) * per_column, (top + size) * per_line)
    height, width = frame.shape[:2]
    inside = (*box[:2], min(box[2], width), min(box[3], height))  # a product may be rounded up
    return np.asarray(Image.fromarray(frame).resize((size, size), resampling, box=inside))


def whole(frame: np.ndarray, size: int, colour: np.ndarray, resampling: Image.Resampling) -> np.ndarray:
    """uint8 (S S 3): a frame in the middle of a square of one colour, resized to S.

    Args:
        frame: uint8, H W 3.
        size: S.
        colour: uint8, 3.
        resampling: how pixels between pixels are computed.
    """
    if frame.shape[0] > frame.shape[1]:
        return whole(frame.transpose(1, 0, 2), size, colour, resampling).transpose(1, 0, 2)
    height, side = frame.shape[:2]
    shrunk = Image.fromarray(np.ascontiguousarray(frame)).resize((size, height), resampling)  # H S 3
    # of the padded square's lines, those around the frame: the others have one colour
    per_line, top = side / size, (side - height) // 2
    first = max(0, math.floor(top / per_line) - _REACH)
    last = min(size, math.ceil((top + height) / per_line) + _REACH)
    start = max(0, math.floor((first - _REACH) * per_line))
    stop = min(side, math.ceil((last + _REACH) * per_line))
    band = Image.new("RGB", (size, stop - start), tuple(colour.tolist()))
    band.paste(shrunk, (0, top - start))
    box = (0, first * per_line - start, size, last * per_line - start)
    square = np.empty((size, size, 3), dtype=np.uint8)
    square[:] = colour
    square[first:last] = np.asarray(band.resize((size, last - first), resampling, box=box))
    return square
