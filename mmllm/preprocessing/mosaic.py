"""Tokens of images in tiles, in reading order: the whole image's first, then the mosaic of its tiles row by row.

B images, T partitions (the whole image and its tiles), N tokens of a partition, D width, L tokens in reading order
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmllm.errors import InputError
from mmllm.tokens import Tiling, VisualTokens

if TYPE_CHECKING:
    from torch import Tensor


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
        raise InputError("a mosaic needs tokens of tiled images, with their place on a patch grid")
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
            partition, index = (torch.cat([values, torch.full_like(ends, -1)]) for values in (partition, index))
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
