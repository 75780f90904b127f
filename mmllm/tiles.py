"""Images of any resolution as tiles: which grid to cut, the cut itself, and the reading order of the tiles' tokens.

    600 x 250 image    whole image squashed to one tile, then the tiles of the padded image, row by row
    +-----------+      +---+   +---+---+---+
    |           |  ->  | 0 |   | 1 | 2 | 3 |        partitions 1 + rows * cols, along the frame axis
    +-----------+      +---+   +---+---+---+

B images, T partitions, N tokens of a partition, D width, S side of a tile in pixels, k tiles
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

from mmllm.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from mmllm.tokens import VisualTokens

GridRule = Literal["llava", "fill"]


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How one image was cut."""

    rows: int
    """Rows of tiles; 0 for an image that is only seen whole."""
    cols: int
    height: int
    """Height of the original image in pixels."""
    width: int

    def __post_init__(self) -> None:
        if self.rows < 0 or self.cols < 0 or (self.rows == 0) != (self.cols == 0):
            raise InputError(f"{self.rows}x{self.cols} tiles: both must be positive, or both zero")
        if self.height < 1 or self.width < 1:
            raise InputError(f"an image of {self.height}x{self.width} pixels cannot be tiled")

    @property
    def partitions(self) -> int:
        """The whole image and its tiles."""
        return 1 + self.rows * self.cols

    @property
    def as_row(self) -> tuple[int, int, int, int]:
        """The four numbers that `tilings_of` reads."""
        return self.rows, self.cols, self.height, self.width

    @property
    def transposed(self) -> Tiling:
        """Rows and columns exchanged, the image as it is: how HiRED's release lays its mosaic out."""
        return Tiling(rows=self.cols, cols=self.rows, height=self.height, width=self.width)


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
            covers the largest share of the canvas. The first of equals wins.

    Raises:
        InputError: without pinpoints, or for an image of no pixels.
    """
    if not pinpoints or height < 1 or width < 1:
        raise InputError(f"an image of {height}x{width} pixels needs at least one canvas to choose from: {pinpoints}")

    def merit(canvas: tuple[int, int]) -> tuple[float, float]:
        canvas_height, canvas_width = canvas
        scale = min(canvas_width / width, canvas_height / height)
        covered = int(width * scale) * int(height * scale)
        if rule == "fill":
            return covered / (canvas_height * canvas_width), 0
        shown = min(covered, width * height)
        return shown, shown - canvas_height * canvas_width

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
            raise InputError(f"a canvas of {canvas[0]}x{canvas[1]} pixels is not made of whole {tile} px tiles")
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


def unpadded(mosaic: tuple[int, int], tiling: Tiling) -> tuple[range, range]:
    """Rows and columns of a mosaic of patches (rows, columns) that show the image and not its padding.

    As much is cut from both sides, so that an odd remainder leaves one line more than the image's share.
    """
    rows, cols = mosaic
    if tiling.width * rows > cols * tiling.height:
        cut_off = (rows - tiling.height * cols // tiling.width) // 2
        return range(cut_off, rows - cut_off), range(cols)
    cut_off = (cols - tiling.width * rows // tiling.height) // 2
    return range(rows), range(cut_off, cols - cut_off)


@dataclass(frozen=True, kw_only=True, eq=False)
class Packed:
    """Tokens of tiled images in reading order, with where each is from."""

    features: Tensor
    """B L D."""
    mask: Tensor
    """bool, B L. False behind each image's last token."""
    partition: Tensor
    """int64, B L. Which partition a token shows, 0 being the whole image; -1 at the end of a row."""
    index: Tensor
    """int64, B L. Raster position on that partition's grid; -1 at the end of a row."""


def pack(tokens: VisualTokens, *, unpad: bool = True, newline: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Features B L D and mask B L of `read_out`."""
    packed = read_out(tokens, unpad=unpad, newline=newline)
    return packed.features, packed.mask


def read_out(tokens: VisualTokens, *, unpad: bool = True, newline: Tensor | None = None) -> Packed:
    """Tokens of tiled images in reading order: the whole image's first, then the mosaic of its tiles row by row.

    Works on whole and on reduced tokens; a kept token that shows only padding is dropped.

    Args:
        tokens: features B T N D with `tiling` and a patch grid.
        unpad: leave out patches that show only padding.
        newline: D. Ends each row of the (unpadded) mosaic, whatever is kept of it.

    Raises:
        InputError: for tokens without tiling or without a patch grid.
    """
    import torch

    if tokens.tiling is None or tokens.grid is None:
        raise InputError("only the tokens of tiled images, with their place on the patch grid, make a mosaic")
    rows: list[tuple[Tensor, Tensor, Tensor]] = []
    for image, tiling in enumerate(tokens.tiling):
        index = tokens.index[image]  # T N
        place, kept = _places(index, tokens.grid, tiling, unpad=unpad)  # T N, T N
        kept = kept & tokens.mask[image]
        partition = torch.arange(len(index), device=index.device).unsqueeze(1).expand(index.shape)
        features, place, partition, index = tokens.features[image][kept], place[kept], partition[kept], index[kept]
        if newline is not None and tiling.rows:
            ends = _row_ends(tokens.grid, tiling, unpad=unpad).to(place.device)
            features = torch.cat([features, newline.to(features).expand(len(ends), -1)])
            place = torch.cat([place, ends])
            partition, index = (torch.cat([one, torch.full_like(ends, -1)]) for one in (partition, index))
        order = place.argsort(stable=True)
        rows.append((features[order], partition[order], index[order]))
    padded = torch.nn.utils.rnn.pad_sequence
    features, partition, index = (
        padded([row[which] for row in rows], batch_first=True, padding_value=fill)
        for which, fill in ((0, 0.0), (1, -1), (2, -1))
    )
    lengths = torch.tensor([len(row[0]) for row in rows], device=features.device)
    mask = torch.arange(features.shape[1], device=features.device) < lengths.unsqueeze(1)
    return Packed(features=features, mask=mask, partition=partition, index=index)


def check_partitions(tokens: VisualTokens) -> None:
    """Refuses tiled images whose partitions are not the whole image and all of its tiles, before any padding.

    Raises:
        InputError: naming the image and both numbers.
    """
    for image, (present, tiling) in enumerate(zip(tokens.frame_mask, tokens.tiling or (), strict=False)):
        count = int(present.sum())
        if count != tiling.partitions or not bool(present[:count].all()):
            raise InputError(f"image {image} has {count} partitions; its tiling says {tiling.partitions}")


def _mosaic(grid: tuple[int, int], tiling: Tiling, unpad: bool) -> tuple[int, range, range]:
    """Width of the mosaic in patches, and the rows and columns of it that are read."""
    size = (tiling.rows * grid[0], tiling.cols * grid[1])
    rows, cols = unpadded(size, tiling) if unpad else (range(size[0]), range(size[1]))
    return size[1], rows, cols


def _places(index: Tensor, grid: tuple[int, int], tiling: Tiling, *, unpad: bool) -> tuple[Tensor, Tensor]:
    """T N: where each token comes in reading order, doubled to leave room for row ends; and whether it is read."""
    import torch

    height, width = grid
    partition = torch.arange(len(index), device=index.device).unsqueeze(1)  # T 1
    place, read = index * 2, (partition == 0).expand(index.shape)
    if tiling.rows:
        mosaic_width, rows, cols = _mosaic(grid, tiling, unpad)
        tile = partition - 1
        y = tile.div(tiling.cols, rounding_mode="floor") * height + index.div(width, rounding_mode="floor")
        x = tile % tiling.cols * width + index % width
        inside = (y >= rows.start) & (y < rows.stop) & (x >= cols.start) & (x < cols.stop)
        is_tile = (partition > 0) & (partition < tiling.partitions)
        place = torch.where(is_tile, 2 * (height * width + y * mosaic_width + x), place)
        read = read | (is_tile & inside)
    return place, read


def _row_ends(grid: tuple[int, int], tiling: Tiling, *, unpad: bool) -> Tensor:
    import torch

    mosaic_width, rows, cols = _mosaic(grid, tiling, unpad)
    lines = torch.arange(rows.start, rows.stop)
    return 2 * (grid[0] * grid[1] + lines * mosaic_width + cols.stop - 1) + 1
