"""Images in tiles, as LLaVA-NeXT has them: the whole image, then its tiles row by row, a newline behind each row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmllm.hosting.media import Medium, Source
from mmllm.hosting.scores import Tower
from mmllm.hosting.towers import tower_of


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


def packed(model: Any, maps: Tensor, tiles: Sequence[int], inputs: Mapping[str, Any], **options: Any) -> Tensor:
    """V: a score of each patch (F N) laid out as their method lays out the tokens of tiled images; 0 at newlines.

    Args:
        model: transformers' model.
        maps: F N, of all tiles.
        tiles: how many of them each image has.
        inputs: with `image_sizes`.
        options: further arguments of their `pack_image_features`.
    """
    parts, _ = model.base_model.pack_image_features(
        [own.unsqueeze(-1) for own in maps.split(list(tiles))],
        inputs["image_sizes"],
        image_newline=maps.new_zeros(1),
        **options,
    )
    return torch.cat([part.flatten() for part in parts])


def next_towers(model: Any) -> dict[Source, Tower]:
    """The tower of a LLaVA-NeXT model, for its feature method for images; empty if its class token is a feature."""
    config = model.config
    is_clip = config.vision_config.model_type.startswith("clip")
    if not is_clip or config.vision_feature_select_strategy != "default":
        return {}
    tower = tower_of(model.base_model.vision_tower, layer=config.vision_feature_layer, cls=True)
    return {} if tower is None else {"image": tower}


def next_images(model: Any, maps: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """V: a score of each patch (F N) of LLaVA-NeXT's tiled images, in the order of its tokens."""
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    config = model.config
    pixels = config.vision_config.image_size
    tiles = [image_size_to_num_patches(size, config.image_grid_pinpoints, pixels) for size in inputs["image_sizes"]]
    strategy = config.vision_feature_select_strategy
    return packed(model, maps, tiles, inputs, vision_feature_select_strategy=strategy)
