"""H2O (arXiv 2306.14048): the keys that have received most attention, and the most recent ones.

B rows, G key heads, K keys
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from mmllm.context.budgets import Budget, require_budget
from mmllm.context.evicting import EvictingConfig, sum_of
from mmllm.context.scored import ScoredPolicy
from mmllm.llm.values import AttentionView
from mmllm.registry import register


@dataclass(frozen=True, kw_only=True)
class H2OConfig(EvictingConfig):
    """Settings of `H2O`."""

    heavy: Budget = 0.1
    """Keys that stay because they have received most attention: a count, or a share of the prompt."""
    recent: Budget = 0.1
    """The newest keys, which stay; 0 for none."""
    rule: Literal["drop", "mask", "mask-as-run"] = "drop"
    """drop evicts; mask hides keys by the masks of the authors' simulation, and saves no memory; mask-as-run sees one
    key more, because a line of its first version writes into the mask through a view."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_budget(self, "heavy")
        require_budget(self, "recent", or_none=True)


@register("context", "h2o", config=H2OConfig)
class H2O(ScoredPolicy):
    """Heavy hitters: the keys that have received most attention so far, and the most recent ones."""

    config: H2OConfig

    def __init__(self, config: H2OConfig) -> None:
        self.config, self.masks = config, config.rule != "drop"
        self.sees_border = self.none_recent_is_all = config.rule == "mask-as-run"
        self.none_recent_hides_new = self.masks
        self.family = "select" if self.masks else "evict"

    def budget_of(self, free: int) -> int:
        """Heavy and recent keys."""
        return sum_of(self.config.heavy, self.config.recent, free)

    def counts(self, view: AttentionView, free: Tensor) -> tuple[Tensor, Tensor]:
        """int64, B each: the settings as counts. Masks allow both to be 0, as the release does."""
        if self.masks:
            heavy, recent = self.budgets(view, free, least=0, heavy=self.config.heavy, recent=self.config.recent)
            return heavy, recent
        return self.chosen_and_recent(view, free, self.config.heavy, self.config.recent)
