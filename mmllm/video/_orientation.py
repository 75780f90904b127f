"""Turning frames upright. A file's display matrix is a rotation by quarter turns, sometimes with a mirror.

H W height width of a frame as it is coded
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Orientation:
    """How a frame is turned: first rows and columns are swapped, then columns and rows are reversed."""

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    @property
    def identity(self) -> bool:
        """True if the frame stays as it is."""
        return not (self.transpose or self.flip_x or self.flip_y)

    @property
    def mirrored(self) -> bool:
        """True if a rotation alone is not enough."""
        return self.transpose ^ self.flip_x ^ self.flip_y

    @property
    def rotation(self) -> int:
        """Degrees clockwise, after a left-right mirror if `mirrored`."""
        if self.transpose:
            return 90 if self.flip_x else 270
        return 180 if self.flip_y else 0

    def upright(self, frame: np.ndarray) -> np.ndarray:
        """The frame (H W 3) turned upright; (W H 3) after a quarter turn."""
        if self.transpose:
            frame = frame.transpose(1, 0, 2)
        return frame[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]

    def coded_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width before the turn, from height and width after it."""
        return (width, height) if self.transpose else (height, width)


def from_display_matrix(matrix: bytes) -> Orientation:
    """The quarter turn and mirror of a container's display matrix: nine 32-bit numbers, row by row.

    The matrix moves a pixel (x, y) to (a x + c y, b x + d y); y points down. A matrix that is empty, or not a multiple
    of a quarter turn, is ignored.
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
