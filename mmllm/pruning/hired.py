"""HiRED: one budget for an image and its tiles, shared by where the whole image is attended to (AAAI 2025).

    budget of all  ->  alpha of it to the whole image, the rest to the tiles
    a tile's part  ->  how much of the whole image's first-layer class attention lies in its region
    inside each    ->  the patches with the highest late-layer class attention

The published code departs from the paper: it cuts the whole image's patches into contiguous runs, which are bands
and not tiles as soon as there is more than one column, and counts the most attended patches of each run instead of
adding their attention up. `mode="paper"` is the true geometry, `mode="release"` what the code does.

B images, T partitions (the whole image, then its tiles row by row), k tiles, N patches of a partition, K kept
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from mmllm.errors import InputError
from mmllm.fields import require
from mmllm.interfaces import TokenReducer
from mmllm.preprocessing.mosaic import check_partitions
from mmllm.pruning.budget import BUDGET_GUARD, Budget, apportion
from mmllm.pruning.needs import score_of
from mmllm.pruning.selection import check_scores, ranks, top_counted
from mmllm.registry import register
from mmllm.tokens import Tiling, VisualTokens

Mode = Literal["paper", "release"]
_GUARD = 1e-6
"""Added before rounding real-valued shares down: 50 * 0.58 is 28.99... in floating point."""


@dataclass(frozen=True, kw_only=True)
class HiredConfig(Budget):
    """A budget over the whole image and its tiles; `ratio` is the paper's token budget rate, 0.2 or 0.4 there."""

    rounding: ClassVar[Literal["nearest", "floor"]] = "floor"

    alpha: float = 0.5
    """Share of the budget that goes to the whole image."""
    mode: Mode = "paper"
    """Whether tiles are scored as the paper says or as the published code does."""
    split: Literal["attention", "even"] = "attention"
    """How the tiles' budget is shared; "even" is the baseline of the paper's ablation (Table 5)."""
    redistribute: bool = False
    """Hand on what rounding down and full tiles leave over. Neither the paper nor the code does."""
    spatial_budget: float = 0.0
    """The published code's other baseline: this share of every partition's patches, evenly spaced along the raster, is
    kept beside what the budget keeps."""
    score: Literal["cls_attention", "mean_attention"] = "cls_attention"
    """`mean_attention` serves encoders without a class token."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.alpha <= 1, self, "alpha", "between 0 and 1")
        require(0 <= self.spatial_budget <= 1, self, "spatial_budget", "between 0 and 1")

    def fraction(self, tokens: int, *, guard: float = BUDGET_GUARD) -> int:
        """`ratio` of a number of tokens, rounded down; in release mode with the code's floating point."""
        return super().fraction(tokens, guard=0.0 if self.mode == "release" else guard)


@register("reducer", "hired", config=HiredConfig)
class HiredReducer(TokenReducer):
    """HiRED: shares one budget between an image and its tiles by attention, then keeps the most attended patches."""

    score_choices: ClassVar[tuple[str, ...]] = ("cls_attention", "mean_attention")

    def __init__(self, config: HiredConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def scores_needed(self) -> tuple[str, ...]:
        """A late layer ranks the patches, the first layer shares the budget between tiles."""
        return self.config.score, f"{self.config.score}@0"

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """Tokens B T K of B T N. Images that are not tiled, and frames of a video, are reduced one by one.

        Raises:
            InputError: if a score is missing or not finite, the partitions are not those of the tiling, nothing would
                be left, or (release) the tiles do not divide the patches.
        """
        if tokens.tiling is None:
            counts = self.config.per_frame(tokens.mask)
        else:
            check_partitions(tokens)
            first = score_of(tokens, f"{self.config.score}@0", "hired").float()
            counts = torch.zeros_like(tokens.mask[..., 0], dtype=torch.long)
            for image, tiling in enumerate(tokens.tiling):
                shares = self.budgets(first[image, 0], tokens, image, tiling)
                counts[image, : len(shares)] = torch.tensor(shares, device=counts.device)
        late = self.ranking(tokens)
        if every := spaced(tokens.shape[2], self.config.spatial_budget):
            late, counts = _with(every, late, counts, tokens)
        kept, mask = top_counted(late, counts, tokens.mask)
        return tokens.take(kept, mask)

    def ranking(self, tokens: VisualTokens) -> Tensor:
        """float32, B T N: what patches of one partition are ranked by."""
        return score_of(tokens, self.config.score, "hired").float()

    def budgets(self, first: Tensor, tokens: VisualTokens, image: int, tiling: Tiling) -> list[int]:
        """How many tokens each partition of one image keeps: the whole image, then the tiles.

        Args:
            first: N, first-layer attention of the whole image.
            tokens: the batch.
            image: number of the image in the batch.
            tiling: how it was cut.
        """
        partitions, patches = tiling.partitions, tokens.shape[2]
        budget = self._budget(partitions, patches)
        if budget < 1:
            raise InputError(f"HiredConfig.ratio = {self.config.ratio} leaves no token of {partitions * patches}")
        if budget >= partitions * patches:
            return [patches] * partitions
        if not tiling.rows:
            return [min(budget, patches)]
        config = self.config
        if config.split == "even":
            scores = np.ones(partitions - 1)
        else:
            first = first.masked_fill(~tokens.mask[image, 0], 0.0)
            scores = tile_scores(first, tokens.index[image, 0], tokens.grid, tiling, config.mode, config.alpha)
        guard = 0.0 if config.mode == "release" else _GUARD
        return split_budget(budget, patches, scores, config.alpha, redistribute=config.redistribute, guard=guard)

    def _budget(self, partitions: int, patches: int) -> int:
        if self.config.ratio is None:
            return self.config.upper_bound(patches, partitions)
        return self.config.fraction(partitions * patches, guard=_GUARD)

    def kept_tokens(self, tokens_per_frame: int, frames: int) -> int:
        """The most tokens that remain of a whole video, or of an image and its tiles."""
        beside = frames * len(spaced(tokens_per_frame, self.config.spatial_budget))
        return min(self._budget(frames, tokens_per_frame) + beside, frames * tokens_per_frame)


def spaced(patches: int, share: float) -> range:
    """Every n-th of `patches` positions, the last one excluded, for about `share` of them; the release's spacing."""
    count = int(patches * share)
    return range(0, patches - 1, patches // count) if count else range(0)


def _with(every: range, late: Tensor, counts: Tensor, tokens: VisualTokens) -> tuple[Tensor, Tensor]:
    """Scores B T N in which the most attended of each row and `every` n-th patch come first, and their number B T."""
    check_scores(late.masked_fill(~tokens.mask, 0.0))
    chosen = ranks(late.masked_fill(~tokens.mask, -torch.inf)) < counts.unsqueeze(-1)
    chosen[..., list(every)] = True
    chosen &= tokens.mask
    return chosen.float(), chosen.sum(-1)


def tile_scores(
    first: Tensor, index: Tensor, grid: tuple[int, int] | None, tiling: Tiling, mode: Mode, alpha: float
) -> np.ndarray:
    """How much of the whole image's attention belongs to each tile, float64 (k).

    Args:
        first: N, first-layer attention of the whole image.
        index: int64, N. Places of its patches on the grid.
        grid: rows and columns of patches.
        tiling: how the image was cut.
        mode: "paper" adds up the attention inside each tile's rectangle (Eq. 1); "release" counts, in each of k
            contiguous runs of patches, those among the highest (1 - alpha) N.
        alpha: the whole image's share of the budget.

    Raises:
        InputError: if an attention is not finite or negative; in release mode, if k does not divide N.
    """
    if grid is None:
        raise InputError("1D tokens have no place on a patch grid, so no tile to belong to")
    if not bool((first.isfinite() & (first >= 0)).all()):
        raise InputError("attention that shares a budget must be finite and not negative")
    tiles, patches = tiling.rows * tiling.cols, len(first)
    if mode == "release":
        if patches % tiles or grid[0] != grid[1]:
            raise InputError(
                f"a {grid[0]}x{grid[1]} grid of {patches} patches cannot be cut into {tiles} equal runs, as "
                "mode='release' does with square grids"
            )
        highest = first.argsort(descending=True, stable=True)[: int(patches * (1 - alpha))]
        owner, weight = highest // (patches // tiles), torch.ones_like(highest, dtype=torch.float64)
    else:
        height, width = grid
        y, x = index.div(width, rounding_mode="floor"), index % width
        owner, weight = y * tiling.rows // height * tiling.cols + x * tiling.cols // width, first.double()
    scores = torch.zeros(tiles, dtype=torch.float64, device=first.device).scatter_add(0, owner, weight)
    return scores.cpu().numpy()


def split_budget(
    budget: int,
    patches: int,
    scores: np.ndarray,
    alpha: float,
    *,
    redistribute: bool = False,
    guard: float = _GUARD,
) -> list[int]:
    """Tokens for the whole image and for each tile, none above `patches`.

    Everything is rounded down and nothing is handed on, unless `redistribute` is asked for.

    Args:
        budget: tokens for all partitions together.
        patches: N, what a partition has.
        scores: float64, k. How much each tile matters; if nothing matters, all tiles alike.
        alpha: share of the whole image.
        redistribute: give what rounding and full tiles leave over to the other tiles.
        guard: added before `budget * alpha` is rounded down; the released code adds nothing.
    """
    whole = min(math.floor(budget * alpha + guard), patches)
    rest = min(budget - whole, len(scores) * patches)
    if not scores.sum() > 0:
        warnings.warn("no tile is attended to; the budget is shared evenly", stacklevel=2)
        scores = np.ones_like(scores)
    if redistribute:
        return [whole, *apportion(scores, rest, least=0, most=np.full(len(scores), patches)).tolist()]
    shares = np.floor(rest * scores / scores.sum() + _GUARD).astype(int)
    return [whole, *np.minimum(shares, patches).tolist()]
