"""HiRED: one budget for an image and its tiles, shared in proportion to attention (AAAI 2025).

    whole budget    ->  a fraction alpha for the whole image, the rest for the tiles
    a tile's share  ->  how much of the whole image's first-layer class attention lies in the tile's region
    inside each     ->  the patches with the highest late-layer class attention

The published code differs from the paper. It cuts the patches of the whole image into contiguous runs; with more than
one column of tiles these are bands and not tiles. It counts the most attended patches of each run, and does not add up
their attention. `mode="paper"` is the geometry of the paper, `mode="release"` that of the published code.

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
from mmllm.interfaces import Grid, Origin, TokenReducer
from mmllm.preprocessing.mosaic import check_partitions
from mmllm.pruning.budget import BUDGET_GUARD, Budget, apportion
from mmllm.pruning.needs import score_of
from mmllm.pruning.selection import check_scores, ranks, top_counted
from mmllm.registry import register
from mmllm.tokens import Tiling, VisualTokens

Mode = Literal["paper", "release"]
_GUARD = 1e-6
"""Added before shares are rounded down: 50 * 0.58 is 28.99... in floating point."""


@dataclass(frozen=True, kw_only=True)
class HiredConfig(Budget):
    """A budget for the whole image and its tiles; `ratio` is the paper's token budget rate (there 0.2 or 0.4)."""

    rounding: ClassVar[Literal["nearest", "floor"]] = "floor"

    alpha: float = 0.5
    """Fraction of the budget for the whole image."""
    mode: Mode = "paper"
    """Whether tiles are scored as in the paper or as in the published code."""
    split: Literal["attention", "even"] = "attention"
    """How the tiles share their budget; "even" is the baseline of the paper's ablation (Table 5)."""
    redistribute: bool = False
    """Give tokens that rounding and full tiles leave over to other tiles; not in the paper or the published code."""
    spatial_budget: float = 0.0
    """Another baseline of the published code: this fraction of the patches of every partition, evenly spaced in raster
    order, is kept in addition to the budget."""
    score: Literal["cls_attention", "mean_attention"] = "cls_attention"
    """Score by which patches are ranked; `mean_attention` is for encoders without a class token."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.alpha <= 1, self, "alpha", "between 0 and 1")
        require(0 <= self.spatial_budget <= 1, self, "spatial_budget", "between 0 and 1")

    def fraction(self, tokens: int, *, guard: float = BUDGET_GUARD) -> int:
        """`ratio` of a number of tokens, rounded down; in release mode with the published code's rounding errors."""
        return super().fraction(tokens, guard=0.0 if self.mode == "release" else guard)


@register("reducer", "hired", config=HiredConfig)
class HiredReducer(TokenReducer):
    """HiRED: shares one budget between an image and its tiles by attention, then keeps the most attended patches."""

    origin = Origin(
        original="hasanar1f/HiRED, arXiv 2408.10945",
        compared_with="outputs of its code",
        equal="attention, and masks of one partition, exactly; tiles with mode=release by the rule written out",
    )
    other_needs = "the same of the encoder's first layer"
    score_choices: ClassVar[tuple[str, ...]] = ("cls_attention", "mean_attention")

    def __init__(self, config: HiredConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def scores_needed(self) -> tuple[str, ...]:
        """Attention of a late layer, which ranks the patches, and of the first layer, which shares the budget."""
        return self.config.score, f"{self.config.score}@0"

    @property
    def by_frame(self) -> bool:
        """Whether the budget is one of each frame, not of the whole video."""
        return self.config.total is None

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """Tokens B T K of B T N. Images without tiles, and frames of a video, are reduced one by one.

        Raises:
            InputError: if a score is missing or not finite, the partitions are not those of the tiling, no token would
                remain, or the patches cannot be divided among the tiles (release mode only).
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
        if positions := spaced(tokens.shape[2], self.config.spatial_budget):
            late, counts = _with_spaced(positions, late, counts, tokens)
        kept, mask = top_counted(late, counts, tokens.mask)
        return tokens.take(kept, mask)

    def ranking(self, tokens: VisualTokens) -> Tensor:
        """float32, B T N: the score by which the patches of a partition are ranked."""
        return score_of(tokens, self.config.score, "hired").float()

    def budgets(self, first: Tensor, tokens: VisualTokens, image: int, tiling: Tiling) -> list[int]:
        """How many tokens each partition of one image keeps: the whole image, then the tiles.

        Args:
            first: N, first-layer attention of the whole image.
            tokens: the batch.
            image: number of the image in the batch.
            tiling: how it was cut.

        Raises:
            InputError: if the budget leaves no token, the attention cannot be used, or the patches cannot be divided
                among the tiles (release mode only).
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
        additional = frames * len(spaced(tokens_per_frame, self.config.spatial_budget))
        return min(self._budget(frames, tokens_per_frame) + additional, frames * tokens_per_frame)

    def counts_by_shape(self, tokens_per_frame: int, frames: int, grid: Grid) -> list[int] | None:
        """The budget of each frame; with `spatial_budget` attention decides how many of its patches are new."""
        return None if self.config.spatial_budget else self.config.of_each(tokens_per_frame, frames)


def spaced(patches: int, fraction: float) -> range:
    """About `fraction` of `patches` positions, evenly spaced as in the published code; never the last position."""
    count = int(patches * fraction)
    return range(0, patches - 1, patches // count) if count else range(0)


def _with_spaced(positions: range, late: Tensor, counts: Tensor, tokens: VisualTokens) -> tuple[Tensor, Tensor]:
    """Scores B T N that are 1 for the `counts` most attended patches and for the `positions`; and their number B T."""
    check_scores(late.masked_fill(~tokens.mask, 0.0))
    chosen = ranks(late.masked_fill(~tokens.mask, -torch.inf)) < counts.unsqueeze(-1)
    chosen[..., list(positions)] = True
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
        mode: "paper" adds up the attention inside each tile's rectangle (Eq. 1). "release" cuts the patches into k
            contiguous runs, and counts in each run the patches that are among the highest (1 - alpha) N.
        alpha: the whole image's fraction of the budget.

    Raises:
        InputError: if there is no grid, or an attention is negative or not finite; in release mode, if the grid is not
            square or k does not divide N.
    """
    if grid is None:
        raise InputError("hired needs tokens with a place on a patch grid, and 1D tokens have none")
    if not bool((first.isfinite() & (first >= 0)).all()):
        raise InputError("the first layer's attention must be finite and not negative: the budget is shared by it")
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
    """Tokens for the whole image and for each tile, at most `patches` each. Shares are rounded down.

    Args:
        budget: tokens for all partitions together.
        patches: N, the tokens of a partition.
        scores: float64, k. Weight of each tile; if all are 0, all tiles count the same.
        alpha: fraction of the whole image.
        redistribute: give tokens that rounding and full tiles leave over to other tiles.
        guard: added before `budget * alpha` is rounded down; the published code adds nothing.
    """
    whole = min(math.floor(budget * alpha + guard), patches)
    rest = min(budget - whole, len(scores) * patches)
    if not scores.sum() > 0:
        warnings.warn("no tile receives attention; the budget is shared evenly", stacklevel=2)
        scores = np.ones_like(scores)
    if redistribute:
        return [whole, *apportion(scores, rest, least=0, most=np.full(len(scores), patches)).tolist()]
    shares = np.floor(rest * scores / scores.sum() + _GUARD).astype(int)
    return [whole, *np.minimum(shares, patches).tolist()]
