"""What a reducer left, as pictures: frames with the dropped patches dark, and what they were ranked by as a heat map.

T frames, Y X height and width in pixels, H W patch grid
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from torch import Tensor

from mmllm.errors import InputError
from mmllm.interfaces import TokenReducer
from mmllm.tokens import VisualTokens

DIMMED = 0.25
"""Brightness that is left of a dropped patch."""
_HEAT = 0.6
"""Share of a heat map's colours; the rest is the frame in grey."""


def enlarged(patches: np.ndarray, height: int, width: int) -> np.ndarray:
    """T Y X: values of patches (T H W) spread over the pixels that each patch covers."""
    rows, cols = (
        np.arange(side) * count // side for side, count in zip((height, width), patches.shape[1:], strict=True)
    )
    return patches[:, rows][:, :, cols]


def dimmed(frames: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """uint8, T Y X 3: frames with the dropped patches dark.

    Args:
        frames: uint8, T Y X 3, as the encoder saw them.
        kept: bool, T H W.

    Raises:
        InputError: if there are not as many frames as maps of patches.
    """
    light = np.where(_over(frames, kept), 1.0, DIMMED)
    return (frames * light[..., None]).astype(np.uint8)


def heated(frames: np.ndarray, values: np.ndarray) -> np.ndarray:
    """uint8, T Y X 3: frames in grey under the colours of their patches' values, dark for the lowest of the video.

    Args:
        frames: uint8, T Y X 3.
        values: float, T H W; where it is not finite the frame stays grey.

    Raises:
        InputError: if there are not as many frames as maps of patches.
    """
    from matplotlib import colormaps

    values = _over(frames, values.astype(np.float64))
    known = np.isfinite(values)
    low, high = (values[known].min(), values[known].max()) if known.any() else (0.0, 1.0)
    colours = colormaps["inferno"](np.where(known, values - low, 0.0) / max(high - low, 1e-12))[..., :3] * 255
    share = np.where(known, _HEAT, 0.0)[..., None]
    return (frames.mean(axis=-1, keepdims=True) * (1 - share) + colours * share).astype(np.uint8)


def _over(frames: np.ndarray, patches: np.ndarray) -> np.ndarray:
    if len(frames) != len(patches) or patches.ndim != 3:
        raise InputError(f"{frames.shape} frames and {patches.shape} patches do not belong together")
    return enlarged(patches, *frames.shape[1:3])


def kept_places(left: VisualTokens) -> np.ndarray | None:
    """bool, T H W: the patches of the first video of which a token is left; None where tokens have no place."""
    return None if left.grid is None else left.on_grid()[1][0].cpu().numpy()


def ranking_shown(reducers: Iterable[TokenReducer], tokens: VisualTokens) -> tuple[str, np.ndarray] | None:
    """What the first reducer that ranks tokens went by: its name and float32 T H W of the first video.

    Where tokens were merged inside the encoder, it is how many patches each token stands for. None without either, or
    where tokens have no place; not a number where there was no token to rank.
    """
    if tokens.grid is None:
        return None
    for reducer in reducers:
        if (shown := reducer.explain(tokens)) is not None:
            return shown.name, _laid_out(tokens, shown.values)
    return None if tokens.size is None else ("patches in a token", _laid_out(tokens, tokens.size))


def _laid_out(tokens: VisualTokens, values: Tensor) -> np.ndarray:
    placed, there = tokens.replace(features=values.detach().float().unsqueeze(-1)).on_grid()
    return placed[0, ..., 0].masked_fill(~there[0], float("nan")).cpu().numpy()
