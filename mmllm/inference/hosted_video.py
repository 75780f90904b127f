"""A video as the tower of a hosted model has seen it.

T frames, N prompt length, H W grid of visual tokens
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
from torch import Tensor

from mmllm.errors import ConfigError
from mmllm.hosting.encoding import HostedFeatures
from mmllm.hosting.media import Medium
from mmllm.hosting.prompting import PreparedVideo
from mmllm.inference.encoded import EncodedVideo


@dataclass(frozen=True, kw_only=True, eq=False)
class HostedVideo(EncodedVideo):
    """A video as a hosted model's tower has seen it."""

    prepared: PreparedVideo
    """For its prompts."""
    features: HostedFeatures
    """Every visual token, before any reducer."""
    frame_text: tuple[tuple[int, ...], ...] = ()
    """T. Ids of the time before each frame, for `times="text"`."""
    offset_s: float = 0.0
    """What is added to the times that the model says: those of a prompt without times begin at its first frame."""


def kept_places(media: Sequence[Medium], keep: Tensor, frames: int, together: int) -> np.ndarray | None:
    """bool, T H W: the places of a video's grid that are kept; None if its tokens are on no grid.

    Args:
        media: of the prompt.
        keep: bool, N.
        frames: T.
        together: frames of a temporal grid; each of them has the places of the grid.
    """
    if len(media) != 1 or media[0].grid is None:
        return None
    medium, grid = media[0], media[0].grid
    free = ~cast(Tensor, medium.fixed)
    frame_of, place_of = cast(Tensor, medium.frame_of)[free], cast(Tensor, medium.place_of)[free]
    kept = np.zeros((medium.frames, grid[0] * grid[1]), dtype=bool)
    kept[frame_of, place_of] = keep[cast(Tensor, medium.places)[free]].numpy()
    kept = kept.repeat(together, axis=0)[:frames]
    return kept.reshape(len(kept), *grid) if len(kept) == frames else None


class NoSink:
    """Takes no video: the processor needs all frames together."""

    def takes(self, count: int) -> Literal[False]:
        """Never."""
        return False

    def put(self, frame: np.ndarray) -> bool:
        """Is not called: no video is taken."""
        raise AssertionError(f"a frame of {frame.shape} was not asked for")


def hosted_video(encoded: EncodedVideo) -> HostedVideo:
    """The video, if a hosted model has encoded it.

    Raises:
        ConfigError: if another model has.
    """
    if not isinstance(encoded, HostedVideo):
        raise ConfigError(f"a hosted model takes videos that a hosted model has encoded, not {type(encoded).__name__}")
    return encoded
