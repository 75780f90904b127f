"""Tokens of a long video, collected piece by piece in memory that is taken once.

T frames of the video, t frames of a piece, N tokens of a frame, C width
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mmllm.tokens import VisualTokens


class TokenStore:
    """Pieces of a video's tokens; they end up as they would have been in one call.

    Args:
        frames: T. Frames that are never added have masked tokens of zeros.
    """

    def __init__(self, frames: int) -> None:
        self.frames = frames
        self._tokens: VisualTokens | None = None

    def add(self, piece: VisualTokens, rows: np.ndarray) -> None:
        """Adds tokens 1 t N C of the frames numbered `rows` (int64, t)."""
        if self._tokens is None or piece.shape[2] > self._tokens.shape[2]:
            self._tokens = self._room_for(piece)
        values, at = _tensors(piece), torch.from_numpy(rows)
        for name, room in _tensors(self._tokens).items():
            room[:, at.to(room.device), : piece.shape[2]] = values[name]

    @property
    def tokens(self) -> VisualTokens:
        """1 T N C. Frames with fewer tokens than others are filled up, masked."""
        assert self._tokens is not None
        return self._tokens

    def _room_for(self, piece: VisualTokens) -> VisualTokens:
        """Empty room as wide as a piece, with what was stored before."""

        def room(value: Tensor) -> Tensor:
            return value.new_zeros(1, self.frames, *value.shape[2:])

        scores = {name: room(score) for name, score in piece.scores.items()}
        wider = piece.replace(
            features=room(piece.features),
            index=room(piece.index),
            mask=room(piece.mask),
            size=None if piece.size is None else room(piece.size),
            scores=scores,
            times_s=None,
        )
        if self._tokens is not None:
            earlier = _tensors(self._tokens)
            for name, value in _tensors(wider).items():
                value[:, :, : earlier[name].shape[2]] = earlier[name]
        return wider


def _tensors(tokens: VisualTokens) -> dict[str, Tensor]:
    """Every tensor with a token axis, by name."""
    named = {"features": tokens.features, "index": tokens.index, "mask": tokens.mask}
    if tokens.size is not None:
        named["size"] = tokens.size
    return named | {f"score {name}": score for name, score in tokens.scores.items()}


def piece_of(tokens: VisualTokens, frames: slice) -> VisualTokens:
    """The tokens of a run of frames. The similarity of neighbours is left out: the last frame has none any more."""
    return tokens.replace(
        features=tokens.features[:, frames],
        index=tokens.index[:, frames],
        mask=tokens.mask[:, frames],
        times_s=None if tokens.times_s is None else tokens.times_s[:, frames],
        size=None if tokens.size is None else tokens.size[:, frames],
        similarity=None,
        audio=None if tokens.audio is None else tokens.audio[:, frames],
        audio_mask=None if tokens.audio_mask is None else tokens.audio_mask[:, frames],
        scores={name: score[:, frames] for name, score in tokens.scores.items()},
    )
