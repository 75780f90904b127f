"""Images in tiles of LLaVA-NeXT and what follows it: the whole image, then its tiles row by row, a newline behind each row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from mmllm.hosting.media import Medium


def tiled_image(config: Any, size: Sequence[int], *, most_tiles: int | None = None) -> Medium:
    """An image of that height and width in pixels. Its tokens have no common grid; newlines are always kept.

    Args:
        config: with `image_grid_pinpoints` and the tower's sizes.
        size: height and width before it was cut.
        most_tiles: rows and columns shrink above the area of so many tiles (LLaVA-OneVision).
    """
    from transformers.image_processing_utils import select_best_resolution

    pixels = config.vision_config.image_size
    side = pixels // config.vision_config.patch_size
    best = select_best_resolution(tuple(size), config.image_grid_pinpoints)
    rows, columns = _without_padding([length // pixels * side for length in best], size)
    if most_tiles is not None:
        ratio = math.sqrt(rows * columns / (most_tiles * side**2))
        if ratio > 1.1:
            rows, columns = int(rows // ratio), int(columns // ratio)
    newline = torch.zeros(rows, columns + 1, dtype=torch.bool)
    newline[:, -1] = True
    fixed = torch.cat([torch.zeros(side * side, dtype=torch.bool), newline.flatten()])
    return Medium(modality="image", frames=1, count=len(fixed), fixed=fixed)


def _without_padding(grid: Sequence[int], size: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of tokens that show the image, not the padding at two of its sides."""
    (rows, columns), (height, width) = grid, size
    if width / height > columns / rows:
        padding = (rows - int(round(height * columns / width, 7))) // 2
        return rows - 2 * padding, columns
    padding = (columns - int(round(width * rows / height, 7))) // 2
    return rows, columns - 2 * padding
