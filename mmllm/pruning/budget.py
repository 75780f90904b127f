"""How many tokens may remain: one vocabulary for all reducers, per frame, as a share, or for the whole video.

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

BUDGET_GUARD = 1e-9
"""Keeps a product that is a whole number on paper from falling one short in floating point (100 * 0.29)."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Exactly one of `keep`, `ratio` and `total`. Reducers' configurations extend this class."""

    rounding: ClassVar[Literal["nearest", "floor"]] = "nearest"
    """How a share of a frame becomes a number of tokens; a half is rounded up."""

    keep: int | None = None
    """Tokens that remain of each frame (of each tile, for a tiled image)."""
    ratio: float | None = None
    """Share of the tokens that remains: 0.25 keeps a quarter."""
    total: int | None = None
    """Tokens that remain of the whole video; frames that only pad a batch take no part."""

    def __post_init__(self) -> None:
        given = [name for name in ("keep", "ratio", "total") if getattr(self, name) is not None]
        if len(given) != 1:
            what = f"both {' and '.join(given)}" if given else "none of them"
            raise ConfigError(f"{type(self).__name__} needs exactly one of keep, ratio and total; given: {what}")
        for name in ("keep", "total"):
            if getattr(self, name) is not None:
                operator.index(getattr(self, name))  # a TypeError for 1.5 tokens
        require(self.keep is None or self.keep >= 1, self, "keep", "at least 1 token")
        require(self.ratio is None or 0 < self.ratio <= 1, self, "ratio", "above 0 and at most 1")
        require(self.total is None or self.total >= 1, self, "total", "at least 1 token")

    def fraction(self, tokens: int, *, guard: float = BUDGET_GUARD) -> int:
        """`ratio` of a number of tokens, rounded as this budget rounds; at least one unless rounded down."""
        assert self.ratio is not None
        if self.rounding == "floor":
            return min(tokens, math.floor(tokens * self.ratio + guard))
        return min(tokens, max(1, math.floor(tokens * self.ratio + 0.5 + guard)))

    def per_frame(self, mask: Tensor) -> Tensor:
        """int64, B T: how many tokens each frame keeps, of those that `mask` (bool, B T N) says are there.

        A `total` is dealt out evenly over the frames that are there, no frame more than one token ahead.

        Raises:
            InputError: if `keep` exceeds what a frame has, or the budget leaves a frame without any token.
        """
        there = mask.sum(dim=-1).cpu().numpy()  # B T
        if self.keep is not None:
            self._fits(mask.shape[-1])
            counts = np.full_like(there, self.keep)
        elif self.ratio is not None:
            counts = np.array([[self.fraction(int(n)) if n else 0 for n in video] for video in there]).reshape(
                there.shape
            )
            if ((counts == 0) & (there > 0)).any():
                raise InputError(f"ratio = {self.ratio} leaves no token of a frame of {int(there.max())}")
        else:
            counts = np.stack([self._dealt(video > 0) for video in there]) if len(there) else there
        return torch.from_numpy(np.minimum(counts, there)).long().to(mask.device)

    def upper_bound(self, tokens_per_frame: int, frames: int) -> int:
        """The most tokens that can remain of `frames` frames of `tokens_per_frame` each."""
        if self.keep is not None:
            self._fits(tokens_per_frame)
            return self.keep * frames
        if self.ratio is not None:
            return self.fraction(tokens_per_frame) * frames
        return min(self.total or 0, tokens_per_frame * frames)

    def for_video(self, there: np.ndarray) -> int:
        """Tokens that remain of one video whose frames have `there` (int, T) tokens."""
        if self.keep is not None:
            return int(np.minimum(there, self.keep).sum())
        if self.ratio is not None:
            return self.fraction(int(there.sum()))
        return min(self.total or 0, int(there.sum()))

    def _fits(self, tokens_per_frame: int) -> None:
        if self.keep is not None and self.keep > tokens_per_frame:
            raise InputError(f"{type(self).__name__}.keep = {self.keep}: a frame has only {tokens_per_frame} tokens")

    def _dealt(self, present: np.ndarray) -> np.ndarray:
        assert self.total is not None
        frames = int(present.sum())
        if self.total < frames:
            raise InputError(f"total = {self.total} is less than one token for each of {frames} frames")
        edges = np.arange(frames + 1) * self.total // max(frames, 1)
        counts = np.zeros(len(present), dtype=np.int64)
        counts[present] = np.diff(edges)
        return counts


def apportion(weights: np.ndarray, total: int, *, least: int, most: np.ndarray) -> np.ndarray:
    """Whole numbers in proportion to `weights` that add up to `total`, between `least` and `most` each.

    What one entry cannot take goes to the others; remainders go to the largest, the earlier of equals.

    Args:
        weights: float, T, not negative. All zero means equal.
        total: what to share out.
        least: what each entry gets at least, as far as its `most` allows.
        most: int, T. What each entry can take.

    Raises:
        InputError: if `least` for each entry is more than `total`.
    """
    counts = np.minimum(least, most)
    if counts.sum() > total:
        raise InputError(f"{total} tokens are less than {least} for each of {len(most)} frames")
    left = min(total, int(most.sum())) - int(counts.sum())
    while left > 0:
        room = most - counts
        pull = np.where(room > 0, weights, 0.0)
        pull = pull if pull.sum() > 0 else (room > 0).astype(float)
        wish = left * pull / pull.sum()
        given = np.where(wish >= room, room, 0)  # the full ones first; the rest share what these cannot take
        if not given.any():
            given = np.floor(wish + BUDGET_GUARD).astype(np.int64)
            order = np.argsort(np.where(room > given, given - wish, np.inf), kind="stable")
            given[order[: left - int(given.sum())]] += 1
        counts = counts + given
        left -= int(given.sum())
    return counts
