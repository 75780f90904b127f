"""Turning frames upright: a file's display matrix is a rotation by quarter turns, perhaps with a mirror.

H W height width of a frame as it is coded
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Orientation:
    """Rows and columns swapped first, then columns and rows reversed."""

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    @property
    def identity(self) -> bool:
        """True where nothing has to be done."""
        return not (self.transpose or self.flip_x or self.flip_y)

    @property
    def mirrored(self) -> bool:
        """True where no turning alone would do."""
        return self.transpose ^ self.flip_x ^ self.flip_y

    @property
    def rotation(self) -> int:
        """Degrees clockwise, after a left-right mirror where `mirrored`."""
        if self.transpose:
            return 90 if self.flip_x else 270
        return 180 if self.flip_y else 0

    def upright(self, frame: np.ndarray) -> np.ndarray:
        """The frame (H W 3) as it should be seen, (W H 3) after a quarter turn."""
        if self.transpose:
            frame = frame.transpose(1, 0, 2)
        return frame[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]

    def coded_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width before turning, of a frame that shall have these after it."""
        return (width, height) if self.transpose else (height, width)


def from_display_matrix(matrix: bytes) -> Orientation:
    """The quarter turn and mirror of a container's display matrix: nine 32-bit numbers, row by row.

    The matrix sends a pixel (x, y) to (a x + c y, b x + d y), the picture's y pointing down. A matrix that is no
    multiple of a quarter turn, or empty, counts as none.
    """
    if len(matrix) < 20:
        return Orientation()
    a, b, _, c, d = struct.unpack_from("=5i", matrix)
    straight, crossed = min(abs(a), abs(d)), min(abs(b), abs(c))
    if straight > 16 * max(abs(b), abs(c)):
        return Orientation(flip_x=a < 0, flip_y=d < 0)
    if crossed > 16 * max(abs(a), abs(d)):
        return Orientation(transpose=True, flip_x=c < 0, flip_y=b < 0)
    return Orientation()
