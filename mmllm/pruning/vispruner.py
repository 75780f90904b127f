"""VisPruner: half of the budget by attention, half by dropping what is like others (ICCV 2025, arXiv 2412.01818v2).

    important = the most attended tokens of a frame
    diverse   = of the others, again and again a few that are most like another one are dropped

By the authors of FasterVLM, on the encoder's features, without training.

B videos, T frames or tiles, F frames at once, N tokens of a frame, R tokens still there, D encoder width
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmllm.fields import require
from mmllm.interfaces import Grid, Origin, TokenReducer
from mmllm.pruning.budget import BUDGET_GUARD, Budget
from mmllm.pruning.needs import score_of
from mmllm.pruning.selection import check_scores, equal_frames, rows_at
from mmllm.registry import register
from mmllm.tokens import VisualTokens


@dataclass(frozen=True, kw_only=True)
class VisPrunerConfig(Budget):
    """A budget of each frame, and how it is spent."""

    important: float = 0.5
    """Share of the budget for the most attended tokens."""
    step: int = 8
    """How many tokens are dropped before likeness is compared anew."""
    score: Literal["cls_attention", "mean_attention"] = "cls_attention"
    """Score by which tokens are important."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.important <= 1, self, "important", "from 0 to 1")
        require(self.step >= 1, self, "step", "at least 1")


@register("reducer", "vispruner", config=VisPrunerConfig)
class VisPrunerReducer(TokenReducer):
    """VisPruner: the most attended tokens of a frame, and of the others those least like each other."""

    origin = Origin(
        original="arXiv 2412.01818v2",
        compared_with="its rule written out",
        equal="the same tokens, by a loop over lists",
    )
    score_choices: ClassVar[tuple[str, ...]] = ("cls_attention", "mean_attention")

    def __init__(self, config: VisPrunerConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def scores_needed(self) -> tuple[str, ...]:
        """The attention inside the block that made the features."""
        return (self.config.score,)

    @property
    def by_frame(self) -> bool:
        """Whether the budget is one of each frame, not of the whole video."""
        return self.config.total is None

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """B T K of B T N tokens, in raster order.

        Raises:
            InputError: if a score is missing or not finite, or the budget exceeds the tokens of a frame.
        """
        b, t = tokens.shape[:2]
        scores = self.ranking(tokens)
        check_scores(scores.masked_fill(~tokens.mask, 0.0))
        counts = self.config.per_frame(tokens.mask).flatten()  # F
        features, scores = tokens.features.flatten(0, 1), scores.flatten(0, 1)
        most = int(counts.max()) if counts.numel() else 0
        kept = torch.zeros(b * t, most, dtype=torch.long, device=features.device)
        mask = torch.arange(most, device=kept.device) < counts.unsqueeze(-1)
        for frames, positions, count in equal_frames(tokens.mask.flatten(0, 1), counts):
            own = scores[frames].gather(1, positions)
            best = chosen(rows_at(features[frames], positions), own, count, self.config)
            kept[frames, :count] = positions.gather(1, best).sort(-1).values
        return tokens.take(kept.view(b, t, most), mask.view(b, t, most))

    def ranking(self, tokens: VisualTokens) -> Tensor:
        """float32, B T N: the attention by which tokens are important."""
        return score_of(tokens, self.config.score, "vispruner").float()

    def kept_tokens(self, tokens_per_frame: int, frames: int) -> int:
        """The most tokens that remain of a whole video."""
        return self.config.upper_bound(tokens_per_frame, frames)

    def counts_by_shape(self, tokens_per_frame: int, frames: int, grid: Grid) -> list[int]:
        """The budget of each frame."""
        return self.config.of_each(tokens_per_frame, frames)


def chosen(features: Tensor, scores: Tensor, count: int, config: VisPrunerConfig) -> Tensor:
    """Positions (int64, F K) of the `count` tokens of each frame that stay.

    Args:
        features: F N D.
        scores: float32, F N.
        count: K, from 1 to N.
        config: how the budget is spent.
    """
    order = scores.argsort(dim=-1, descending=True, stable=True)
    important = int(count * config.important + BUDGET_GUARD)
    others = order[:, important:]
    unit = normalize(features.detach().float(), dim=-1)
    diverse = count - important
    while others.shape[1] > diverse:
        first, second = others[:, ::2], others[:, 1::2]
        if not second.shape[1]:
            others = first[:, :diverse]  # a single token, and no room for it
            break
        likeness = (rows_at(unit, first) @ rows_at(unit, second).mT).amax(-1)  # F R/2
        falling = likeness.argsort(dim=-1, descending=True, stable=True)
        dropped = min(config.step, others.shape[1] - diverse, first.shape[1])
        others = torch.cat([first.gather(1, falling[:, dropped:]), second], dim=-1)
    return torch.cat([order[:, :important], others], dim=-1)
