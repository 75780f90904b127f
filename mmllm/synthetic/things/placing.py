"""A picture at its place in a frame: moved, sized and turned with smooth edges, to fractions of a pixel.

S side of a frame, P side of the patch that a picture takes
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from mmllm.synthetic.things.pictures import PictureSet

if TYPE_CHECKING:
    from PIL.Image import Image

Place = tuple[float, float, float, float]
"""x, y and size in fractions of the frame's side, and the angle in radians, clockwise."""


def patch_of(pictures: PictureSet, name: str, place: Place, side: int) -> tuple[Image, int, int]:
    """The picture in RGBA (P P), and the column and row of its upper left pixel in a frame of `side` pixels."""
    from PIL import Image

    x, y, size, angle = place
    picture = pictures.at_least(name, size * side)
    cosine, sine = math.cos(angle), math.sin(angle)
    reach = size * side * (abs(cosine) + abs(sine)) / 2
    left, top = math.floor(x * side - reach), math.floor(y * side - reach)
    patch = math.ceil(2 * reach) + 1
    # Where each pixel of the patch is in the picture: relative to the centre, turned back and sized.
    scale = picture.width / (size * side)
    a, b = cosine * scale, sine * scale
    u, v = left - x * side, top - y * side
    middle = picture.width / 2
    matrix = (a, b, a * u + b * v + middle, -b, a, -b * u + a * v + middle)
    turned = picture.transform((patch, patch), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    return turned, left, top


def alpha_of(pictures: PictureSet, name: str, place: Place, side: int) -> tuple[np.ndarray, float]:
    """How much of each pixel of a frame a picture takes (float64, S S), and the sum, with what is out of the frame."""
    from PIL import Image

    patch, left, top = patch_of(pictures, name, place, side)
    alpha = patch.getchannel("A")
    frame = Image.new("L", (side, side))
    frame.paste(alpha, (left, top))
    return np.asarray(frame, dtype=np.float64) / 255, float(np.asarray(alpha, dtype=np.float64).sum()) / 255
