"""Images of any resolution as tiles: which grid to cut, and the cut itself.

    600 x 250 image    whole image squashed to one tile, then the tiles of the padded image, row by row
    +-----------+      +---+   +---+---+---+
    |           |  ->  | 0 |   | 1 | 2 | 3 |        partitions 1 + rows * cols, along the frame axis
    +-----------+      +---+   +---+---+---+

I images, S side of a tile in pixels, k tiles
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

from mmllm.errors import InputError
from mmllm.tokens import Tiling

if TYPE_CHECKING:
    from torch import Tensor
GridRule = Literal["llava", "fill"]


def tilings_of(described: Tensor) -> tuple[Tiling, ...]:
    """How images were cut, of int64 I 4: rows, columns, height and width; what `as_row` wrote.

    Raises:
        InputError: if there are not four numbers for each image.
    """
    if described.ndim != 2 or described.shape[1] != 4:
        raise InputError(f"image_tiling must be (I 4): rows, columns, height, width; not {tuple(described.shape)}")
    return tuple(Tiling(rows=r, cols=c, height=h, width=w) for r, c, h, w in described.tolist())


def choose_grid(
    height: int, width: int, pinpoints: Sequence[tuple[int, int]], *, rule: GridRule = "llava"
) -> tuple[int, int]:
    """The canvas (height, width) in pixels that an image is best shown on.

    Args:
        height, width: the image's size in pixels.
        pinpoints: the canvases to choose from, (height, width).
        rule: "llava" shows the most pixels of the image, then wastes the least canvas; "fill" (FasterVLM's release)
            covers the largest fraction of the canvas. Of equal canvases the first is taken.

    Raises:
        InputError: without pinpoints, or for an image of no pixels.
    """
    if not pinpoints or height < 1 or width < 1:
        raise InputError(
            f"choosing a canvas needs an image with pixels and at least one canvas, not {height}x{width} pixels and "
            f"{pinpoints}"
        )

    def merit(canvas: tuple[int, int]) -> tuple[float, float]:
        canvas_height, canvas_width = canvas
        scale = min(canvas_width / width, canvas_height / height)
        covered = int(width * scale) * int(height * scale)
        if rule == "fill":
            return covered / (canvas_height * canvas_width), 0
        visible = min(covered, width * height)
        return visible, visible - canvas_height * canvas_width

    return max(pinpoints, key=merit)


def cut(
    image: np.ndarray, pinpoints: Sequence[tuple[int, int]], *, tile: int, rule: GridRule = "llava"
) -> tuple[np.ndarray, Tiling]:
    """The whole image squashed to one tile, and the tiles of the image centred on black (LLaVA-NeXT).

    Args:
        image: uint8, H W 3.
        pinpoints: canvases (height, width) in pixels, multiples of `tile`.
        tile: S, side of the encoder's input.
        rule: how the canvas is chosen; see `choose_grid`.

    Returns:
        uint8, (1 + k) S S 3, tiles row by row; and how the image was cut.

    Raises:
        InputError: if a canvas is not made of whole tiles.
    """
    for canvas in pinpoints:
        if canvas[0] % tile or canvas[1] % tile:
            raise InputError(f"a canvas of {canvas[0]}x{canvas[1]} pixels cannot be cut into whole {tile} px tiles")
    height, width = image.shape[:2]
    canvas_height, canvas_width = choose_grid(height, width, pinpoints, rule=rule)
    picture = Image.fromarray(image)
    if canvas_width / width < canvas_height / height:
        fitted = (canvas_width, min(math.ceil(height * canvas_width / width), canvas_height))
    else:
        fitted = (min(math.ceil(width * canvas_height / height), canvas_width), canvas_height)
    canvas_image = Image.new("RGB", (canvas_width, canvas_height))
    corner = ((canvas_width - fitted[0]) // 2, (canvas_height - fitted[1]) // 2)
    canvas_image.paste(picture.resize(fitted, Image.Resampling.BICUBIC), corner)
    whole = np.asarray(picture.resize((tile, tile), Image.Resampling.BICUBIC))
    rows, cols = canvas_height // tile, canvas_width // tile
    mosaic = np.asarray(canvas_image).reshape(rows, tile, cols, tile, 3).swapaxes(1, 2).reshape(-1, tile, tile, 3)
    return np.concatenate([whole[None], mosaic]), Tiling(rows=rows, cols=cols, height=height, width=width)
