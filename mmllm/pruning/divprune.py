"""DivPrune: the most diverse tokens of an image, whatever the encoder's attention (CVPR 2025, arXiv 2503.02175).

B videos or images, T frames or tiles, N tokens of a frame, K kept, D LLM width
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from mmllm.interfaces import Grid, Origin, ProjectedReducer
from mmllm.pruning.budget import Budget
from mmllm.pruning.diversity import cosine_distance, max_min_order
from mmllm.pruning.ordered import first_of_order
from mmllm.registry import register
from mmllm.tokens import VisualTokens


@dataclass(frozen=True, kw_only=True)
class DivPruneConfig(Budget):
    """A budget; the paper keeps `ratio=0.098` of an image's tokens."""

    rounding: ClassVar[Literal["nearest", "even", "floor"]] = "even"


@register("reducer", "divprune", config=DivPruneConfig)
class DivPruneReducer(ProjectedReducer):
    """DivPrune: in every frame the tokens that are farthest from each other, by the cosine behind the projector."""

    origin = Origin(
        original="vbdi/divprune 799e2d9, arXiv 2503.02175",
        compared_with="outputs of its code",
        equal="choices and their order in five cases, exactly",
    )

    def __init__(self, config: DivPruneConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """B T K of B T N tokens, in raster order; a smaller budget keeps a subset of what a larger one keeps.

        Raises:
            InputError: if a feature is not finite, or the budget exceeds the tokens of a frame.
        """
        features, mask = tokens.features.flatten(0, 1), tokens.mask.flatten(0, 1)  # B*T N D, B*T N

        def order(frames: slice, most: int) -> Tensor:
            return max_min_order(cosine_distance(features[frames]), most, mask[frames])

        return first_of_order(tokens, self.config.per_frame(tokens.mask), order)

    def kept_tokens(self, tokens_per_frame: int, frames: int) -> int:
        """The most tokens that remain of a whole video."""
        return self.config.upper_bound(tokens_per_frame, frames)

    def counts_by_shape(self, tokens_per_frame: int, frames: int, grid: Grid) -> list[int]:
        """The budget of each frame."""
        return self.config.of_each(tokens_per_frame, frames)
