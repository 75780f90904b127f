"""H2O (arXiv 2306.14048): the keys that have received most attention, and the most recent ones.

B rows, G key heads, K keys
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from mmllm.context.budgets import Budget, count_of, require_budget
from mmllm.context.evicting import EvictingConfig
from mmllm.context.scored import ScoredPolicy
from mmllm.llm.values import AttentionView
from mmllm.registry import register


@dataclass(frozen=True, kw_only=True)
class H2OConfig(EvictingConfig):
    """Settings of `H2O`."""

    heavy: Budget = 0.1
    """Keys that stay because they have received most attention: a count, or a share of the prompt."""
    recent: Budget = 0.1
    """The newest keys, which stay."""
    rule: Literal["drop", "mask", "mask-as-run"] = "drop"
    """drop evicts; mask hides keys by the masks of the authors' simulation, and saves no memory; mask-as-run sees one
    key more, because a line of its first version writes into the mask through a view."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("heavy", "recent"):
            require_budget(self, field)


@register("context", "h2o", config=H2OConfig)
class H2O(ScoredPolicy):
    """Heavy hitters: the keys that have received most attention so far, and the most recent ones."""

    config: H2OConfig

    def __init__(self, config: H2OConfig) -> None:
        self.config, self.masks = config, config.rule != "drop"
        self.sees_border = config.rule == "mask-as-run"
        self.family = "select" if self.masks else "evict"

    def budget_of(self, free: int) -> int:
        """Heavy and recent keys."""
        return count_of(self.config.heavy, free) + count_of(self.config.recent, free)

    def counts(self, view: AttentionView, free: Tensor) -> tuple[Tensor, Tensor]:
        """int64, B each: the settings as counts."""
        heavy, recent = self.budgets(view, free, heavy=self.config.heavy, recent=self.config.recent)
        return heavy, recent
