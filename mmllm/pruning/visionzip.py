"""VisionZip: the most attended tokens of a frame, and a few sums of the others (CVPR 2025, arXiv 2412.04467).

    dominant    = the class token, if the encoder keeps it, and the patches that it attends to most
    contextual  = evenly spaced ones of the rest, each with the mean of the others whose keys are nearest to its own

The authors keep the class token: give CLIP the setting `class_token=true`.

B videos, T frames or tiles, F frames at once, N tokens of a frame, D encoder width, E key width, R rest, C contextual
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmllm.errors import ConfigError, InputError
from mmllm.fields import require
from mmllm.interfaces import Grid, Origin, TokenReducer
from mmllm.pruning.needs import score_of
from mmllm.pruning.selection import check_scores, equal_frames, rows_at, top_attended
from mmllm.registry import register
from mmllm.tokens import VisualTokens

_CONTEXTUAL_SHARE = 10 / 64
"""The paper's pairs are 54 + 10, 108 + 20 and 162 + 30."""


@dataclass(frozen=True, kw_only=True)
class VisionZipConfig:
    """Either both numbers, or a share of the tokens that is divided as in the paper."""

    dominant: int | None = None
    """Tokens of a frame that are kept, the class token included."""
    contextual: int | None = None
    """Tokens of a frame into which the others are added."""
    ratio: float | None = None
    """Share of a frame's tokens that remains, of both kinds."""
    average: bool = False
    """A contextual token is the mean of all its tokens. As published, it is a token plus the mean of the others, and
    about twice as long."""
    score: Literal["cls_attention", "mean_attention"] = "cls_attention"
    """Score by which tokens are dominant; `mean_attention` is for encoders without a class token."""

    def __post_init__(self) -> None:
        numbers = (self.dominant is None, self.contextual is None)
        if numbers != ((self.ratio is not None),) * 2:
            raise ConfigError("VisionZipConfig needs dominant and contextual, or ratio alone")
        require(self.dominant is None or self.dominant >= 1, self, "dominant", "at least 1 token")
        require(self.contextual is None or self.contextual >= 1, self, "contextual", "at least 1 token")
        require(self.ratio is None or 0 < self.ratio <= 1, self, "ratio", "above 0 and at most 1")

    def counts(self, tokens: int) -> tuple[int, int]:
        """Dominant and contextual tokens of a frame of so many.

        Raises:
            InputError: if they are more than the frame has, unless it keeps all.
        """
        if self.ratio is not None:
            total = min(tokens, max(2, round(tokens * self.ratio)))
            contextual = round(total * _CONTEXTUAL_SHARE) if total < tokens else 0
            return total - contextual, contextual
        assert self.dominant is not None
        assert self.contextual is not None
        if self.dominant + self.contextual > tokens:
            raise InputError(
                f"visionzip keeps {self.dominant} + {self.contextual} tokens of a frame, which has only {tokens}"
            )
        return self.dominant, self.contextual


@register("reducer", "visionzip", config=VisionZipConfig)
class VisionZipReducer(TokenReducer):
    """VisionZip: the most attended tokens of a frame, then sums of the others by the likeness of their keys."""

    origin = Origin(
        original="dvlab-research/VisionZip 3151f6d, arXiv 2412.04467",
        compared_with="outputs of its code",
        equal="dominant and contextual tokens in four cases, <= 1e-6",
    )
    score_choices: ClassVar[tuple[str, ...]] = ("cls_attention", "mean_attention")
    needs_keys: ClassVar[bool] = True

    def __init__(self, config: VisionZipConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def scores_needed(self) -> tuple[str, ...]:
        """The attention and the keys of the block that made the features."""
        return (self.config.score, "keys")

    @property
    def by_frame(self) -> bool:
        """True."""
        return True

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """B T K of B T N tokens. The contextual ones follow the dominant ones, each at the place of its first token.

        Raises:
            InputError: if a score is missing or not finite, or a frame has fewer tokens than remain.
        """
        b, t = tokens.shape[:2]
        scores, keys = self.ranking(tokens), score_of(tokens, "keys", "visionzip").flatten(0, 1)
        check_scores(scores.masked_fill(~tokens.mask, 0.0))
        # the class token has no patch, and always stays
        scores = scores.masked_fill(self._class_token(tokens), torch.inf).clamp(max=float(scores.max()) + 1)
        features, scores = tokens.features.flatten(0, 1), scores.flatten(0, 1)
        groups = list(equal_frames(tokens.mask.flatten(0, 1)))
        counts = [self.config.counts(present) for _, _, present in groups]
        if all(sum(kept) == present for kept, (_, _, present) in zip(counts, groups, strict=True)):
            return tokens
        most = max(sum(kept) for kept in counts)
        position = torch.zeros(b * t, most, dtype=torch.long, device=features.device)
        mask, changed = (
            torch.zeros_like(position, dtype=torch.bool),
            features.new_zeros(b * t, most, features.shape[-1]),
        )
        for (frames, present, _), (dominant, contextual) in zip(groups, counts, strict=True):
            own = rows_at(features[frames], present)
            best = top_attended(scores[frames].gather(1, present), dominant)
            targets, sums = contextual_tokens(
                own, rows_at(keys[frames], present), best, contextual, average=self.config.average
            )
            run = slice(0, dominant + contextual)
            position[frames, run] = present.gather(1, torch.cat([best, targets], dim=-1))
            changed[frames, run] = torch.cat([rows_at(own, best), sums], dim=1)
            mask[frames, run] = True
        taken = tokens.take(position.view(b, t, most), mask.view(b, t, most))
        return taken.replace(features=changed.view(b, t, most, -1))

    @staticmethod
    def _class_token(tokens: VisualTokens) -> Tensor:
        """bool, B T N: the class token, whose index is one past the last patch."""
        if tokens.grid is None:
            return torch.zeros_like(tokens.mask)
        return tokens.index == tokens.grid[0] * tokens.grid[1]

    def ranking(self, tokens: VisualTokens) -> Tensor:
        """float32, B T N: the attention by which tokens are dominant."""
        return score_of(tokens, self.config.score, "visionzip").float()

    def kept_tokens(self, tokens_per_frame: int, frames: int) -> int:
        """The tokens that remain of a whole video."""
        return sum(self.config.counts(tokens_per_frame)) * frames

    def counts_by_shape(self, tokens_per_frame: int, frames: int, grid: Grid) -> list[int]:
        """Dominant and contextual tokens of each frame."""
        return [sum(self.config.counts(tokens_per_frame))] * frames


def contextual_tokens(
    features: Tensor, keys: Tensor, dominant: Tensor, count: int, *, average: bool = False
) -> tuple[Tensor, Tensor]:
    """Positions (int64, F C) and features (F C D) of the contextual tokens.

    Args:
        features: F N D.
        keys: float, F N E.
        dominant: int64, F K. Positions that stay as they are.
        count: C, zero or more, at most the number of the others.
        average: see `VisionZipConfig.average`.

    Raises:
        InputError: if the rest is shorter than `count`.
    """
    frames, tokens, width = features.shape
    if count == 0:
        return dominant[:, :0], features[:, :0]
    is_rest = torch.ones(frames, tokens, dtype=torch.bool, device=features.device).scatter(1, dominant, False)
    rest = is_rest.nonzero()[:, 1].view(frames, -1)  # F R
    if rest.shape[1] < count:
        raise InputError(f"{count} contextual tokens cannot be made of {rest.shape[1]} others")
    step = rest.shape[1] // count
    chosen = torch.arange(count, device=features.device) * step  # C, of the R
    others = torch.ones(rest.shape[1], dtype=torch.bool, device=features.device).scatter(0, chosen, False)
    targets, merged = rest[:, chosen], rest[:, others]
    unit = normalize(keys.float(), dim=-1)
    owner = (rows_at(unit, merged) @ rows_at(unit, targets).mT).argmax(-1)  # F R-C
    sums = features.new_zeros(frames, count, width, dtype=torch.float32)
    sums = sums.scatter_add(1, owner.unsqueeze(-1).expand(-1, -1, width), rows_at(features, merged).float())
    sizes = sums.new_zeros(frames, count).scatter_add(1, owner, torch.ones_like(owner, dtype=sums.dtype)).unsqueeze(-1)
    own = rows_at(features, targets)
    if average:
        return targets, ((own + sums) / (sizes + 1)).to(features.dtype)
    return targets, (own + sums / sizes.clamp(min=1)).to(features.dtype)
