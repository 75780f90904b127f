"""One image or video of a prompt: which visual tokens are its own, and where they stand.

N prompt length, T frames or temporal grids, n tokens of a frame, M tokens of a medium
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import Tensor

from mmllm.errors import InputError

Source = Literal["image", "video"]
"""A key of transformers' `mm_encoder_outputs`: by which of a model's two feature methods tokens are made."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Medium:
    """An image or a video, with its M visual tokens in the order in which the LLM reads them.

    Raises:
        InputError: if tokens, frames and grid do not fit together.
    """

    modality: Source
    """What it is for the reader."""
    frames: int
    """T."""
    count: int
    """M, with the tokens that are always kept."""
    grid: tuple[int, int] | None = None
    """Rows and columns of a frame's tokens, after merging; None if they have no common grid."""
    source: Source | None = None
    """Which of their feature methods made it; the modality if None."""
    fixed: Tensor | None = None
    """bool, M. Tokens that are always kept, such as newlines; none of them if it is not given."""
    frame_of: Tensor | None = None
    """int64, M. The frame of each token, -1 for those that are always kept. If None: equally many in each frame."""
    place_of: Tensor | None = None
    """int64, M. The raster position of each token in its frame, -1 for those that are always kept. If None: all, in
    order."""
    row: int = -1
    """The row of the prompt; -1 until it is found."""
    places: Tensor | None = None
    """int64, M. The positions of its tokens in the row; None until they are found."""

    def __post_init__(self) -> None:
        if self.count < 1 or self.frames < 1:
            raise InputError(f"a medium has at least one frame and one token, not {self.frames} and {self.count}")
        put = object.__setattr__
        put(self, "source", self.source or self.modality)
        if self.fixed is None:
            put(self, "fixed", torch.zeros(self.count, dtype=torch.bool))
        for name in ("fixed", "frame_of", "place_of", "places"):
            value = getattr(self, name)
            if value is not None and value.shape != (self.count,):
                raise InputError(f"{name} of a medium must have {self.count} entries, not {tuple(value.shape)}")
        if self.frame_of is None or self.place_of is None:
            self._fill_in_places()

    def _fill_in_places(self) -> None:
        free = ~cast(Tensor, self.fixed)
        n, rest = divmod(int(free.sum()), self.frames)
        if rest or (self.grid is not None and self.grid[0] * self.grid[1] != n):
            raise InputError(f"{int(free.sum())} tokens are not {self.frames} frames with a grid of {self.grid}")
        number = torch.arange(self.frames * n)
        for name, values in (("frame_of", number // max(n, 1)), ("place_of", number % max(n, 1))):
            whole = torch.full((self.count,), -1)
            whole[free] = values
            object.__setattr__(self, name, whole)

    def __repr__(self) -> str:
        return f"Medium({self.modality}, row {self.row}, {self.frames} frames, grid {self.grid}, {self.count} tokens)"


def in_prompt(media: Sequence[Medium], token_ids: Mapping[Source, int | None], input_ids: Tensor) -> tuple[Medium, ...]:
    """The media with their rows and places, in prompt order.

    Args:
        media: in the order in which each feature method makes them.
        token_ids: the placeholder of each feature method; two of them may share one.
        input_ids: int64, B N.

    Raises:
        InputError: if there are more or fewer placeholders than visual tokens, or a medium reaches into another row.
    """
    ids = input_ids.cpu()
    placed: list[Medium] = []
    for token in dict.fromkeys(token for token in token_ids.values() if token is not None):
        own = [medium for medium in media if token_ids.get(cast(Source, medium.source)) == token]
        rows, places = (ids == token).nonzero(as_tuple=True)
        counts = [medium.count for medium in own]
        if sum(counts) != len(rows):
            raise InputError(
                f"the prompt has {len(rows)} placeholders {token}, but its media have {sum(counts)} tokens"
            )
        for medium, row, place in zip(own, rows.split(counts), places.split(counts), strict=True):
            if row[0] != row[-1]:
                raise InputError(f"a {medium.modality} of {medium.count} tokens does not fit into row {int(row[0])}")
            placed.append(replace(medium, row=int(row[0]), places=place))
    return tuple(sorted(placed, key=lambda medium: (medium.row, int(cast(Tensor, medium.places)[0]))))
