"""Pictures of what a reducer kept: frames with dark dropped patches, and the ranking of patches as a heat map.

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
"""Brightness of a dropped patch, as a fraction of its own."""
_HEAT = 0.6
"""Fraction of the heat map's colours in a pixel; the rest is the frame in grey."""


def enlarged(patches: np.ndarray, height: int, width: int) -> np.ndarray:
    """T Y X: each patch's value (of T H W), repeated over the pixels that the patch covers."""
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
    brightness = np.where(_values_per_pixel(frames, kept), 1.0, DIMMED)
    return (frames * brightness[..., None]).astype(np.uint8)


def heated(frames: np.ndarray, values: np.ndarray) -> np.ndarray:
    """uint8, T Y X 3: frames in grey, blended with a colour for each patch's value (dark for the lowest).

    Args:
        frames: uint8, T Y X 3.
        values: float, T H W. Where a value is not finite, the frame stays grey.

    Raises:
        InputError: if there are not as many frames as maps of patches.
    """
    from matplotlib import colormaps

    values = _values_per_pixel(frames, values.astype(np.float64))
    finite = np.isfinite(values)
    low, high = (values[finite].min(), values[finite].max()) if finite.any() else (0.0, 1.0)
    colours = colormaps["inferno"](np.where(finite, values - low, 0.0) / max(high - low, 1e-12))[..., :3] * 255
    heat = np.where(finite, _HEAT, 0.0)[..., None]
    return (frames.mean(axis=-1, keepdims=True) * (1 - heat) + colours * heat).astype(np.uint8)


def _values_per_pixel(frames: np.ndarray, patches: np.ndarray) -> np.ndarray:
    if len(frames) != len(patches) or patches.ndim != 3:
        raise InputError(
            f"frames {frames.shape} and values of patches {patches.shape} do not fit: "
            "they need to be T Y X 3 and T H W with the same T"
        )
    return enlarged(patches, *frames.shape[1:3])


def kept_patches(reduced: VisualTokens) -> np.ndarray | None:
    """bool, T H W: the patches of the first video that still have a token. None if tokens belong to no patch."""
    if reduced.grid is None:
        return None
    without_features = reduced.replace(features=reduced.features[..., :1])  # features on the grid take much memory
    return without_features.on_grid()[1][0].cpu().numpy()


def ranking_map(reducers: Iterable[TokenReducer], tokens: VisualTokens) -> tuple[str, np.ndarray] | None:
    """What the first reducer that ranks tokens ranked them by: a name, and float32 T H W of the first video.

    If no reducer ranks but the encoder merged tokens: how many patches each token stands for. NaN where there was no
    token to rank. None if neither applies, or if tokens belong to no patch.
    """
    if tokens.grid is None:
        return None
    for reducer in reducers:
        if (explanation := reducer.explain(tokens)) is not None:
            return explanation.name, _on_patches(tokens, explanation.values)
    return None if tokens.size is None else ("patches in a token", _on_patches(tokens, tokens.size))


def _on_patches(tokens: VisualTokens, values: Tensor) -> np.ndarray:
    """float32, T H W: values of tokens at their patches, NaN elsewhere."""
    placed, present = tokens.replace(features=values.detach().float().unsqueeze(-1)).on_grid()
    return placed[0, ..., 0].masked_fill(~present[0], float("nan")).cpu().numpy()
