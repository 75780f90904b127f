"""Frames and tiles that a family takes for images: which of them make one video or one image.

Such a family has one placeholder for both, and its processor does not say which pictures belong together. Those do that
stand close in the prompt: `Frame1: <img>..</img> Frame2: <img>..</img>` is a video of two frames.

N prompt length, T frames, n tokens of a frame
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmllm.errors import InputError
from mmllm.hosting.media import Medium, Source

FRAMES_APART = 20
"""Most ids between two frames of a video: a number, a time, and marks around the frame."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Placeholders side by side: one or several pictures without text between them."""

    row: int
    start: int
    length: int


def runs(input_ids: Tensor, token: int) -> Iterator[Run]:
    """The runs of an id in a prompt (int64, B N), in (row, place) order."""
    here = torch.nn.functional.pad(input_ids.cpu() == token, (1, 1)).int()  # B N+2
    change = here.diff(dim=1)
    rows, starts = (change == 1).nonzero(as_tuple=True)
    ends = (change == -1).nonzero(as_tuple=True)[1]
    for row, start, end in zip(rows.tolist(), starts.tolist(), ends.tolist(), strict=True):
        yield Run(row=row, start=start, length=end - start)


def grouped(
    input_ids: Tensor, token: int, tokens: int, *, frames_apart: int = FRAMES_APART, tiles_apart: int = 0
) -> list[tuple[Source, int]]:
    """What each group of pictures is, and how many pictures it has, in prompt order.

    Args:
        input_ids: int64, B N.
        token: the placeholder.
        tokens: placeholders of each picture.
        frames_apart: single pictures with at most so many ids between them are frames of a video.
        tiles_apart: those with at most so many are tiles of one image, as those without any are.

    Raises:
        InputError: if a run of placeholders is no whole number of pictures.
    """
    groups: list[tuple[Source, int]] = []
    row = end = -1  # of the run before
    for run in runs(input_ids, token):
        pictures, rest = divmod(run.length, tokens)
        if rest:
            where = f"at position {run.start} of row {run.row}"
            raise InputError(f"{run.length} placeholders {where} are no whole number of pictures of {tokens}")
        gap = run.start - end if run.row == row else math.inf
        kind, size = groups[-1] if groups else ("image", 0)
        if pictures == 1 and kind == "image" and gap <= tiles_apart:
            groups[-1] = ("image", size + 1)
        elif pictures == 1 and (kind == "video" or size == 1) and gap <= frames_apart:
            groups[-1] = ("video", size + 1)
        else:
            groups.append(("image", pictures))
        row, end = run.row, run.start + run.length
    return groups


def side_by_side(modality: Source, frames: int, tokens: int, *, source: Source | None = None, extra: int = 0) -> Medium:
    """A medium of T frames of n tokens; their grid is square if that is possible.

    Args:
        modality: what it is.
        frames: T.
        tokens: n, without CLS.
        source: the feature method; the modality if None.
        extra: how many tokens stand behind it, such as a newline; always kept.
    """
    fixed = torch.zeros(frames * tokens + extra, dtype=torch.bool)
    fixed[frames * tokens :] = True
    side = math.isqrt(tokens)
    grid = (side, side) if side * side == tokens else None
    return Medium(modality=modality, frames=frames, count=len(fixed), grid=grid, source=source, fixed=fixed)


def with_cls(medium: Medium) -> Medium:
    """The medium with a CLS token in front of each frame, which is always kept."""
    tokens, frames = medium.count // medium.frames, medium.frames
    fixed = torch.zeros(frames, tokens + 1, dtype=torch.bool)
    fixed[:, 0] = True
    return replace(medium, count=fixed.numel(), fixed=fixed.flatten(), frame_of=None, place_of=None)


def tokens_of_each(input_ids: Tensor, token: int, pictures: int, what: str) -> int:
    """n: placeholders of each picture, where the configuration does not say it.

    Raises:
        InputError: if the placeholders are no whole number for each.
    """
    total = int((input_ids == token).sum())
    tokens, rest = divmod(total, max(pictures, 1))
    if rest or tokens == 0:
        raise InputError(f"{total} placeholders {token} do not fit {pictures} {what} with equally many tokens")
    return tokens


def check_count(groups: list[tuple[Source, int]], pictures: int) -> None:
    """Refuses a prompt with placeholders for more or fewer pictures than there are.

    Raises:
        InputError: naming both numbers.
    """
    written = sum(size for _, size in groups)
    if written != pictures:
        raise InputError(f"the prompt has placeholders for {written} pictures, but there are {pictures}")
