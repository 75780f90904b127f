"""Which cells of a square grid show the picture, and not the padding that made it a square.

V videos or images, G side of the grid
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmllm.errors import InputError


def shown_area(height: int, width: int, side: int) -> tuple[range, range]:
    """Rows and columns of a square grid that show a picture padded to a square, as LLaVA counts them.

    There is one row or column more than the picture fills where the rest cannot be split evenly.

    Args:
        height, width: of the picture in pixels.
        side: rows of the grid, and columns.

    Raises:
        InputError: for a picture without pixels.
    """
    if height < 1 or width < 1:
        raise InputError(f"a picture of {height}x{width} pixels shows nothing: both must be at least 1")
    longer, shorter = max(height, width), min(height, width)
    margin = (side - int(shorter * side / longer)) // 2
    whole, part = range(side), range(margin, side - margin)
    return (part, whole) if width > height else (whole, part)


def shown_cells(sizes: Tensor, side: int, *, swapped: bool = False) -> Tensor:
    """bool, V G G: the cells that show a picture padded to a square.

    Args:
        sizes: int64, V 2. Height and width of each picture in pixels.
        side: G.
        swapped: take height for width and width for height, as TDC's released code does for videos. A wide picture then
            loses columns and keeps its padding.
    """
    cells = torch.zeros(len(sizes), side, side, dtype=torch.bool, device=sizes.device)
    for cell, size in zip(cells, sizes.tolist(), strict=True):
        height, width = reversed(size) if swapped else size
        rows, columns = shown_area(height, width, side)
        cell[rows.start : rows.stop, columns.start : columns.stop] = True
    return cells
