"""A strip in a picture that says which frame it is, to be read after any resizing, normalising and encoding.

H W height and width, C colours, 16 cells: a white one, a black one, 11 bits of the number and 3 check bits
"""

from __future__ import annotations

import numpy as np

CELLS = 16
STRIP_SHARE = 1 / 8
"""Height of the strip as a share of the picture's, from its top on."""
_NUMBER_BITS, _CHECK_BITS = 11, 3
MOST_FRAMES = 1 << _NUMBER_BITS
"""Numbers are below this."""
_WHITE, _BLACK = 235, 20
_FARTHEST = 0.3
"""No cell is farther from white and from black, as a share of their difference."""


def draw_strip(picture: np.ndarray, number: int) -> None:
    """Writes the number of a frame over the top of its picture, uint8 (H W 3), in place; H and W at least 32."""
    height, width = picture.shape[:2]
    edges = np.linspace(0, width, CELLS + 1).round().astype(int)
    for bit, left, right in zip(_cells(number), edges[:-1], edges[1:], strict=True):
        picture[: round(height * STRIP_SHARE), left:right] = _WHITE if bit else _BLACK


def read_strip(picture: np.ndarray) -> int | None:
    """The number in a picture (H W C or H W, of any range); None if there is no strip that can be read."""
    grey = picture.astype(np.float64)
    grey = grey.mean(axis=-1) if grey.ndim == 3 else grey
    height, width = grey.shape
    if height < CELLS or width < CELLS:
        return None
    top, bottom = (max(1, round(height * STRIP_SHARE * share)) for share in (0.25, 0.75))
    band = grey[top : max(bottom, top + 1)].mean(axis=0)
    centres = (np.arange(CELLS) + 0.5) * width / CELLS
    reach = width / CELLS / 5
    values = np.array([band[int(c - reach) : max(int(np.ceil(c + reach)), int(c - reach) + 1)].mean() for c in centres])
    white, black = values[:2]
    if not np.isfinite(values).all() or white <= black:
        return None
    shares = (values - black) / (white - black)
    if np.minimum(np.abs(shares), np.abs(shares - 1)).max() > _FARTHEST:
        return None
    bits = shares > 0.5
    number = int("".join("01"[int(bit)] for bit in bits[2 : 2 + _NUMBER_BITS]), 2)
    return number if bits.tolist() == _cells(number) else None


def _cells(number: int) -> list[bool]:
    """The 16 cells of a number."""
    digits = f"10{number:0{_NUMBER_BITS}b}{_check(number):0{_CHECK_BITS}b}"
    return [digit == "1" for digit in digits]


def _check(number: int) -> int:
    """A check value that differs for numbers that differ in one or two bits."""
    return number % 7
