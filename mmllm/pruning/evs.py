"""EVS, efficient video sampling: over the whole video, keep the patches that changed most since the frame before.

    change of a patch = 1 - cosine(patch, the same patch one frame before);  the first frame counts as all new
    kept              = the highest of the whole video, at least as many as the first frame has

No training, no score of the encoder. It is vLLM's `video_pruning_method="evs"`; `rate` is its `video_pruning_rate`. The
number of kept tokens follows from the numbers of frames and patches alone. `least` is ours: without it a still frame
can lose all its tokens, and then only time text or positions say that there was one.

B videos, T frames, N tokens of a frame, D width, K kept
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from mmllm.errors import ConfigError, InputError
from mmllm.fields import require
from mmllm.interfaces import Explanation, Grid, Origin, ProjectedReducer
from mmllm.pruning.budget import BUDGET_GUARD
from mmllm.pruning.selection import check_scores, ranks, top_counted
from mmllm.registry import register
from mmllm.tokens import VisualTokens

NEW = 255.0
"""Change of a patch that has none in its place one frame before; above every distance of two patches."""


@dataclass(frozen=True, kw_only=True)
class EvsConfig:
    """Exactly one of `rate` and `ratio`."""

    rate: float | None = None
    """Fraction of the tokens that is taken away: vLLM's flag, with its rounding."""
    ratio: float | None = None
    """Fraction of the tokens that remains, as other reducers have it."""
    least: int = 0
    """Tokens that every frame keeps at least; vLLM has no such setting."""

    def __post_init__(self) -> None:
        if (self.rate is None) == (self.ratio is None):
            given = "none" if self.rate is None else "both"
            raise ConfigError(f"EvsConfig needs exactly one of rate and ratio; given: {given}")
        require(self.rate is None or 0 <= self.rate < 1, self, "rate", "from 0 to below 1")
        require(self.ratio is None or 0 < self.ratio <= 1, self, "ratio", "above 0 and at most 1")
        require(self.least >= 0, self, "least", "zero or more tokens")

    def count(self, tokens: int, first: int, frames: int) -> int:
        """How many of the `tokens` of a video remain.

        Args:
            tokens: of all frames.
            first: tokens of the first frame, which all stay.
            frames: frames that have tokens.
        """
        if self.rate is not None:
            wanted = int(tokens * (1 - self.rate))
        else:
            assert self.ratio is not None
            wanted = math.floor(tokens * self.ratio + BUDGET_GUARD)
        floor = first + self.least * max(frames - 1, 0)
        return min(tokens, max(wanted, floor))


@register("reducer", "evs", config=EvsConfig)
class EvsReducer(ProjectedReducer):
    """EVS: over the whole video, keeps the patches that changed most since the frame before."""

    origin = Origin(
        original="vLLM 0.32.0, arXiv 2510.14624",
        compared_with="outputs of its code",
        equal="the choice in six cases, exactly",
    )
    layout = "grid"
    compares_frames = True

    def __init__(self, config: EvsConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """B T K of B T N tokens; every frame keeps its own number, the first one keeps all.

        Raises:
            InputError: for 1D tokens, tiled images, or features that are not finite.
        """
        change = self.ranking(tokens)
        if not len(change):
            return tokens
        check_scores(change)
        if self.config.least:
            own = ranks(change.masked_fill(~tokens.mask, -1.0)) < self.config.least
            change = change.masked_fill(own & tokens.mask, NEW)
        order = ranks(rearrange(change.masked_fill(~tokens.mask, -1.0), "b t n -> b (t n)"))
        present = tokens.mask.sum(-1)  # B T
        counts = [self._count(frames) for frames in present.tolist()]
        kept = order < torch.tensor(counts, device=order.device).unsqueeze(-1)
        keep = rearrange(kept, "b (t n) -> b t n", t=change.shape[1]) & tokens.mask
        return tokens.take(*top_counted(keep.float(), keep.sum(-1), tokens.mask))

    def _count(self, present: list[int]) -> int:
        """Tokens that remain of a video whose frames have so many."""
        with_tokens = [tokens for tokens in present if tokens]
        return self.config.count(sum(present), with_tokens[0] if with_tokens else 0, len(with_tokens))

    def ranking(self, tokens: VisualTokens) -> Tensor:
        """float32, B T N: how much each patch changed since the frame before, 0 to 2, or `NEW`.

        Raises:
            InputError: for 1D tokens and tiled images.
        """
        if tokens.tiling is not None:
            raise InputError("evs compares frames in time; for tiled images use hired")
        if tokens.grid is None:
            raise InputError("evs needs tokens with a place on a patch grid, and 1D tokens have none")
        patches, present = tokens.on_grid()
        patches = rearrange(patches.detach().float(), "b t h w d -> b t (h w) d")
        present = rearrange(present, "b t h w -> b t (h w)")
        change = torch.full(present.shape, NEW, device=patches.device)
        moved = 1 - torch.cosine_similarity(patches[:, 1:], patches[:, :-1], dim=-1)
        change[:, 1:] = moved.masked_fill(~(present[:, 1:] & present[:, :-1]), NEW)
        return change.gather(-1, tokens.index.clamp(min=0))

    def explain(self, tokens: VisualTokens) -> Explanation | None:
        """How much each patch changed; nothing where there is no patch before it."""
        change = self.ranking(tokens)
        return Explanation(name="change", values=change.masked_fill(change == NEW, torch.nan))

    def kept_tokens(self, tokens_per_frame: int, frames: int) -> int:
        """The most tokens that remain of a whole video."""
        return self.config.count(tokens_per_frame * frames, tokens_per_frame, frames)

    def counts_by_shape(self, tokens_per_frame: int, frames: int, grid: Grid) -> int:
        """`kept_tokens`, which is exact; what changes shares it among the frames."""
        return self.kept_tokens(tokens_per_frame, frames)
