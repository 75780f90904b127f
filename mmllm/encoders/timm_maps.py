"""What timm's networks give, as maps with the channels first: some have tokens, some have the channels last.

F frames, N tokens, C channels, G1 G2 rows and columns
"""

from __future__ import annotations

import math
from typing import Any

from einops import rearrange
from torch import Tensor, nn

from mmllm.errors import ConfigError


def as_map(tower: Any, output: Tensor) -> Tensor:
    """A map F C G1 G2 of what `forward_features` gives; tokens without a grid become F C N.

    Class and register tokens are left out.

    Raises:
        ConfigError: if it is neither a map nor tokens.
    """
    width = tower.num_features
    if isinstance(output, Tensor) and output.ndim == 4 and width in (output.shape[1], output.shape[3]):
        return output if output.shape[1] == width else rearrange(output, "f y x c -> f c y x")
    if isinstance(output, Tensor) and output.ndim == 3 and output.shape[2] == width:
        return in_raster(output[:, getattr(tower, "num_prefix_tokens", 0) :], tower)
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise ConfigError(f"{type(tower).__name__} of timm gives neither a map nor tokens of width {width}, but {shape}")


def in_raster(tokens: Tensor, tower: Any) -> Tensor:
    """Tokens F N C on the grid of the network's patches, F C G1 G2; without such a grid F C N."""
    count = tokens.shape[1]
    grid = getattr(getattr(tower, "patch_embed", None), "grid_size", None)
    if grid is None or grid[0] * grid[1] != count:
        side = math.isqrt(count)
        grid = (side, side) if side * side == count else None
    return tokens.mT if grid is None else rearrange(tokens, "f (y x) c -> f c y x", y=grid[0], x=grid[1])


def on_grid(values: Tensor, grid: tuple[int, int]) -> Tensor:
    """A map F C G1 G2 on another grid: means of cells on a coarser one, bilinear on a finer one."""
    if values.shape[-2:] == grid:
        return values
    if values.shape[-2] >= grid[0] and values.shape[-1] >= grid[1]:
        return nn.functional.adaptive_avg_pool2d(values, grid)
    return nn.functional.interpolate(values.float(), size=grid, mode="bilinear", align_corners=False).to(values.dtype)


def stage_count(tower: Any) -> int:
    """How many stages `forward_intermediates` can give: the blocks of a transformer, the scales of other networks.

    Raises:
        ConfigError: if it gives none.
    """
    if not hasattr(tower, "forward_intermediates"):
        raise ConfigError(f"{type(tower).__name__} of timm gives no maps of its stages; leave stage out")
    return len(tower.feature_info)
