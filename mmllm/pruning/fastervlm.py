"""FasterVLM: keep the patches that the encoder's class token attends to most (arXiv 2412.01818v1). No training.

    score_j = mean over heads of softmax(q_cls k_j / sqrt(d));  the K highest of every frame stay, in raster order

B videos, T frames (or the partitions of a tiled image, each reduced by itself), N tokens of a frame, K kept
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from mmllm.interfaces import Origin
from mmllm.preprocessing.mosaic import check_partitions
from mmllm.pruning.budget import Budget
from mmllm.pruning.needs import score_of
from mmllm.pruning.ranked import BudgetReducer
from mmllm.registry import register
from mmllm.tokens import VisualTokens


@dataclass(frozen=True, kw_only=True)
class FasterVlmConfig(Budget):
    """A budget and a score. The paper's reductions of 75, 90 and 95 % are ratio 0.25, 0.1 and 0.05."""

    score: Literal["cls_attention", "mean_attention", "probe_attention"] = "cls_attention"
    """Score by which tokens are ranked. The authors advise `mean_attention`, the attention that a patch receives from
    all others, for encoders without a class token. `probe_attention` is our own suggestion for SigLIP."""


@register("reducer", "fastervlm", config=FasterVlmConfig)
class FasterVlmReducer(BudgetReducer):
    """FasterVLM: keeps the patches that the encoder's class token attends to most."""

    origin = Origin(
        original="Theia-4869/FasterVLM, arXiv 2412.01818v1",
        compared_with="outputs of its code",
        equal="masks exactly, embeddings <= 1e-5",
    )
    score_choices: ClassVar[tuple[str, ...]] = ("cls_attention", "mean_attention", "probe_attention")

    config: FasterVlmConfig

    @property
    def scores_needed(self) -> tuple[str, ...]:
        """The attention inside the block that made the features."""
        return (self.config.score,)

    @property
    def by_frame(self) -> bool:
        """Whether the budget is one of each frame, not of the whole video."""
        return self.config.total is None

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """B T K of B T N tokens; a smaller budget keeps a subset of what a larger one keeps.

        Raises:
            InputError: if the tokens have no such score, a score is not finite, the budget exceeds the tokens of a
                frame, or an image has other partitions than its tiling says.
        """
        check_partitions(tokens)
        return super().forward(tokens)

    def ranking(self, tokens: VisualTokens) -> Tensor:
        """float32, B T N: the score by which tokens are ranked."""
        return score_of(tokens, self.config.score, "fastervlm").float()
