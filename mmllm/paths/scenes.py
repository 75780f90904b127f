"""Scenes of a video: cuts where neighbouring frames differ most, and windows of a few frames inside each scene (TDC).

    frames      0 1 2 3 4 5 6 7 8 9 . .          similarity of neighbours is lowest between 3 and 4, and 9 and 10
    scenes      [0 1 2 3][4 5 6 7 8 9][. .]      2 cuts, 3 scenes
    windows     [0 1 2 3][4 5 6 7][8 9][. .]     of 4 frames, the last of a scene is shorter

T frames, P frames that are read, N tokens of a frame, C width
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmllm.errors import InputError
from mmllm.modeling.scenes import neighbours


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """How a video is cut. Frames are counted among those that are read."""

    read: list[int]
    """P. Which of the T frames are read."""
    boundaries: list[int]
    """A scene ends after each of these frames. If every frame is a scene of its own, the last frame is one, too."""
    sizes: list[int]
    """Frames of each scene, in order. The last is 0 if the last frame is a boundary."""
    windows: list[tuple[int, int]]
    """First frame and number of frames of each window, in order."""


def spread(frames: int, most: int) -> list[int]:
    """Which of `frames` frames are read if only `most` may be: all, or `most` of them at equal steps from the first."""
    if frames <= most:
        return list(range(frames))
    step = frames / most  # float64; exact fractions would give another frame here and there
    return [int(step * i) for i in range(most)]


def boundaries_of(similarity: Tensor, cuts: int) -> list[int]:
    """The frames after which a scene ends, ascending.

    Args:
        similarity: float32, P-1. Cosine similarity of each frame to the next.
        cuts: number of cuts. With at most `cuts` + 1 frames, each is a scene of its own, and each is a boundary.

    Raises:
        InputError: if a similarity is not finite.
    """
    if not bool(similarity.isfinite().all()):
        raise InputError("frames cannot be cut into scenes: some of their similarities are infinite or NaN")
    frames = len(similarity) + 1
    if frames <= cuts + 1:
        return list(range(frames))
    lowest = similarity.float().argsort(stable=True)[:cuts]  # of equal ones, the first
    return lowest.sort().values.tolist()


def scene_sizes(boundaries: Sequence[int], frames: int) -> list[int]:
    """Frames of each scene: from the start or behind a boundary to the next boundary or the end."""
    starts = [0, *(boundary + 1 for boundary in boundaries)]
    return [end - start for start, end in zip(starts, [*starts[1:], frames], strict=True)]


def windows_of(sizes: Sequence[int], length: int) -> list[tuple[int, int]]:
    """First frame and number of frames of each window: scenes in pieces of `length` frames, the last may be shorter."""
    windows, start = [], 0
    for size in sizes:
        windows += [(start + first, min(length, size - first)) for first in range(0, size, length)]
        start += size
    return windows


def most_windows(frames: int, cuts: int, length: int) -> int:
    """The largest number of windows that so many frames can have, wherever the cuts lie."""
    scenes = min(frames, cuts + 1)
    return scenes + (frames - scenes) // length


def cut(similarity: Tensor, read: Sequence[int], *, cuts: int, window: int) -> Scenes:
    """The scenes and windows of frames with these similarities (float32, P-1).

    Raises:
        InputError: if a similarity is not finite.
    """
    boundaries = boundaries_of(similarity, cuts)
    sizes = scene_sizes(boundaries, len(read))
    return Scenes(read=list(read), boundaries=boundaries, sizes=sizes, windows=windows_of(sizes, window))


def segment(features: Tensor, *, cuts: int = 24, window: int = 8, most_frames: int = 224) -> Scenes:
    """The scenes and windows of a video.

    Args:
        features: float, T N C. Scene features of its frames.
        cuts: most cuts.
        window: frames of a window.
        most_frames: how many frames are read at most.

    Raises:
        InputError: if there is no frame, a setting is not positive, or a feature is not finite.
    """
    for name, value in {"frames": len(features), "cuts": cuts, "window": window, "most_frames": most_frames}.items():
        if value < 1:
            raise InputError(f"scenes of a video: {name} = {value}, must be at least 1")
    read = spread(len(features), most_frames)
    similarity = neighbours(features, torch.tensor(read, device=features.device))
    return cut(similarity, read, cuts=cuts, window=window)
