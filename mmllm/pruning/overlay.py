"""Pictures of what a reducer left: frames as the encoder saw them, dropped patches dimmed, scores as a heat map.

T frames, S side in pixels, H W patch grid
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmllm.errors import InputError
from mmllm.frames import FrameTransform
from mmllm.tokens import VisualTokens

DIMMED = 0.25
"""Brightness that is left of a dropped patch."""


def enlarged(patches: np.ndarray, side: int) -> np.ndarray:
    """T S S: values of patches (T H W) spread over the pixels that each patch covers."""
    _, height, width = patches.shape
    rows, cols = (np.arange(side) * count // side for count in (height, width))
    return patches[:, rows][:, :, cols]


def dimmed(frames: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Frames with the dropped patches dark.

    Args:
        frames: uint8, T S S 3, as the encoder saw them.
        kept: bool, T H W.

    Raises:
        InputError: if there are not as many frames as maps of kept patches.
    """
    if len(frames) != len(kept) or frames.shape[1] != frames.shape[2]:
        raise InputError(f"{frames.shape} frames and {kept.shape} kept patches do not belong together")
    light = np.where(enlarged(kept, frames.shape[1]), 1.0, DIMMED)
    return (frames * light[..., None]).astype(np.uint8)


def save_overlay(
    frames: np.ndarray,
    before: VisualTokens,
    after: VisualTokens,
    picture: str | Path,
    *,
    transform: FrameTransform,
    score: str | None = None,
    titles: Sequence[str] = (),
) -> Path:
    """Draws the frames of one video: what is kept of each, and below, if asked for, what it was ranked by.

    Args:
        frames: uint8, T H W 3, as decoded.
        before: the encoder's tokens, one video; read for the score.
        after: what the reducers left of them.
        picture: the file to write; its suffix says the format (png, pdf, svg).
        transform: how the encoder's input was made of the frames.
        score: name of a score that `before` carries, drawn as a heat map.
        titles: one for each frame; by default how many of its patches are kept.

    Raises:
        InputError: for more than one video, 1D tokens, a score that is not there or an unknown format.
    """
    from matplotlib.figure import Figure

    if before.shape[0] != 1 or after.shape[0] != 1 or before.grid is None or after.grid is None:
        raise InputError("an overlay shows the patches of one video; 1D tokens have none")
    if score is not None and score not in before.scores:
        raise InputError(f"no score {score!r}; these tokens carry {', '.join(sorted(before.scores)) or 'none'}")
    kept = after.on_grid()[1][0].cpu().numpy()
    seen = np.stack([transform.resized(frame) for frame in frames])
    shown = dimmed(seen, kept)
    rows = 1 if score is None else 2
    figure = Figure(figsize=(1.6 * len(shown) + 0.2, 1.8 * rows), layout="constrained")
    axes = figure.subplots(rows, len(shown), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for number, (axis, image) in enumerate(zip(axes[0], shown, strict=True)):
        axis.imshow(image)
        title = titles[number] if number < len(titles) else f"{int(kept[number].sum())} of {kept[number].size}"
        axis.set_title(title, fontsize=7)
    if score is not None:
        values = before.replace(features=before.scores[score].unsqueeze(-1)).on_grid()[0][0, ..., 0].float().cpu()
        for axis, image, heat in zip(axes[1], seen, values.numpy(), strict=True):
            side = image.shape[0]
            axis.imshow(image.mean(axis=-1), cmap="gray", vmin=0, vmax=255)
            axis.imshow(enlarged(heat[None], side)[0], cmap="inferno", alpha=0.6)
    path = Path(picture)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as problem:
        raise InputError(f"cannot write the picture {str(path)!r}: {problem}") from None
    return path
