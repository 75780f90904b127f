"""How many tokens may remain, in the same three ways for all reducers: per frame, as a fraction, or of a whole video.

B videos, T frames, N tokens of a frame
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from mmllm.errors import ConfigError, InputError
from mmllm.fields import require

EARLY = 1 / 16
"""Depth in the LLM at which FastV and DART drop tokens in their papers: before the third of 32 layers."""
BUDGET_GUARD = 1e-9
"""Added before rounding down: 100 * 0.29 is 28.99... in floating point, and 29 on paper."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Exactly one of `keep`, `ratio` and `total`. Reducers' configurations extend this class."""

    rounding: ClassVar[Literal["nearest", "even", "floor"]] = "nearest"
    """How `ratio` becomes a whole number of tokens; "nearest" rounds a half up, "even" to the even number."""

    keep: int | None = None
    """Tokens that remain of each frame (of each tile, for a tiled image)."""
    ratio: float | None = None
    """Fraction of the tokens that remains: 0.25 keeps a quarter."""
    total: int | None = None
    """Tokens that remain of the whole video; frames that only pad a batch get none."""

    def __post_init__(self) -> None:
        given = [name for name in ("keep", "ratio", "total") if getattr(self, name) is not None]
        if len(given) != 1:
            names = " and ".join(given) or "none"
            raise ConfigError(f"{type(self).__name__} needs exactly one of keep, ratio and total; given: {names}")
        for name in ("keep", "total"):
            if getattr(self, name) is not None:
                operator.index(getattr(self, name))  # a TypeError for 1.5 tokens
        require(self.keep is None or self.keep >= 1, self, "keep", "at least 1 token")
        require(self.ratio is None or 0 < self.ratio <= 1, self, "ratio", "above 0 and at most 1")
        require(self.total is None or self.total >= 1, self, "total", "at least 1 token")

    def fraction(self, tokens: int, *, guard: float = BUDGET_GUARD) -> int:
        """`ratio` of a number of tokens, rounded as `rounding` says; at least 1 unless it rounds down."""
        assert self.ratio is not None
        if self.rounding == "floor":
            return min(tokens, math.floor(tokens * self.ratio + guard))
        if self.rounding == "even":
            return min(tokens, max(1, round(tokens * self.ratio)))
        return min(tokens, max(1, math.floor(tokens * self.ratio + 0.5 + guard)))

    def per_frame(self, mask: Tensor) -> Tensor:
        """int64, B T: how many tokens each frame keeps.

        A `total` is shared evenly among the frames that have tokens; their shares differ by one token at most.

        Args:
            mask: bool, B T N. The tokens that each frame has.

        Raises:
            InputError: if `keep` exceeds the tokens of a frame, or the budget leaves a frame without any token.
        """
        present = mask.sum(dim=-1).cpu().numpy()  # B T
        if self.keep is not None:
            self._fits(mask.shape[-1])
            counts = np.full_like(present, self.keep)
        elif self.ratio is not None:
            fractions = [[self.fraction(int(tokens)) if tokens else 0 for tokens in video] for video in present]
            counts = np.array(fractions).reshape(present.shape)
            if ((counts == 0) & (present > 0)).any():
                raise InputError(f"ratio = {self.ratio} leaves no token of a frame of {int(present.max())}")
        else:
            counts = np.stack([self._shared_evenly(video > 0) for video in present]) if len(present) else present
        return torch.from_numpy(np.minimum(counts, present)).long().to(mask.device)

    def upper_bound(self, tokens_per_frame: int, frames: int) -> int:
        """The most tokens that can remain of `frames` frames of `tokens_per_frame` each."""
        if self.keep is not None:
            self._fits(tokens_per_frame)
            return self.keep * frames
        if self.ratio is not None:
            return self.fraction(tokens_per_frame) * frames
        return min(self.total or 0, tokens_per_frame * frames)

    def of_each(self, tokens_per_frame: int, frames: int) -> list[int]:
        """How many tokens each of `frames` whole frames keeps; see `per_frame`."""
        return self.per_frame(torch.ones(1, frames, tokens_per_frame, dtype=torch.bool))[0].tolist()

    def for_video(self, present: np.ndarray) -> int:
        """Tokens that remain of one video whose frames have `present` (int, T) tokens."""
        if self.keep is not None:
            return int(np.minimum(present, self.keep).sum())
        if self.ratio is not None:
            return self.fraction(int(present.sum()))
        return min(self.total or 0, int(present.sum()))

    def _fits(self, tokens_per_frame: int) -> None:
        if self.keep is not None and self.keep > tokens_per_frame:
            raise InputError(f"{type(self).__name__}.keep = {self.keep}: a frame has only {tokens_per_frame} tokens")

    def _shared_evenly(self, has_tokens: np.ndarray) -> np.ndarray:
        """int64, T: the shares of `total`, for frames of which `has_tokens` (bool, T) says whether they have tokens."""
        assert self.total is not None
        frames = int(has_tokens.sum())
        if self.total < frames:
            raise InputError(f"total = {self.total} is less than one token for each of {frames} frames")
        edges = np.arange(frames + 1) * self.total // max(frames, 1)
        counts = np.zeros(len(has_tokens), dtype=np.int64)
        counts[has_tokens] = np.diff(edges)
        return counts


def apportion(weights: np.ndarray, total: int, *, least: int, most: np.ndarray) -> np.ndarray:
    """Whole numbers in proportion to `weights`, each between `least` and `most`; their sum is `total` if `most` allows.

    What one entry cannot take goes to the others. Units left by rounding go to the largest remainders, the earlier of
    equals first.

    Args:
        weights: float, T, not negative. If all are zero, all count the same.
        total: how many units are shared.
        least: the fewest units of an entry, if its `most` allows as many.
        most: int, T. The most units of each entry.

    Raises:
        InputError: if `least` for each entry is more than `total`.
    """
    counts = np.minimum(least, most)
    if counts.sum() > total:
        raise InputError(f"{total} tokens are less than {least} for each of {len(most)} frames")
    remaining = min(total, int(most.sum())) - int(counts.sum())
    while remaining > 0:
        room = most - counts
        open_weights = np.where(room > 0, weights, 0.0)  # of the entries that can take more
        open_weights = open_weights if open_weights.sum() > 0 else (room > 0).astype(float)
        ideal = remaining * open_weights / open_weights.sum()
        given = np.where(ideal >= room, room, 0)  # entries that become full; the next rounds share the rest
        if not given.any():
            # no entry becomes full: round down, then one unit more for the largest remainders
            given = np.floor(ideal + BUDGET_GUARD).astype(np.int64)
            order = np.argsort(np.where(room > given, given - ideal, np.inf), kind="stable")
            given[order[: remaining - int(given.sum())]] += 1
        counts = counts + given
        remaining -= int(given.sum())
    return counts


def early_layer(layers: int) -> int:
    """The layer, counted from 0, at the depth `EARLY` of an LLM of so many layers; never the first."""
    return max(1, round(layers * EARLY))
