"""H2O (arXiv 2306.14048): the keys that have received most attention, and the most recent ones.

B rows, G key heads, K keys
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from mmllm.context.budgets import Budget, require_budget
from mmllm.context.evicting import EvictingConfig, EvictingPolicy, of_key_heads
from mmllm.context.keeping import heavy_and_recent
from mmllm.llm.values import AttentionView, KeptKeys
from mmllm.registry import register


@dataclass(frozen=True, kw_only=True)
class H2OConfig(EvictingConfig):
    """Settings of `H2O`."""

    heavy: Budget = 0.1
    """Keys that stay because they have received most attention: a count, or a share of the prompt."""
    recent: Budget = 0.1
    """The newest keys, which stay."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("heavy", "recent"):
            require_budget(self, field)


@register("context", "h2o", config=H2OConfig)
class H2O(EvictingPolicy):
    """Heavy hitters: the keys that have received most attention so far, and the most recent ones."""

    heads_apart = True
    config: H2OConfig

    def __init__(self, config: H2OConfig) -> None:
        self.config = config

    def attention_rows(self, view: AttentionView) -> Mapping[str, Tensor]:
        """All real queries."""
        return {"all": view.valid[:, 0, -view.query.shape[2] :].float()}

    def evict(self, view: AttentionView) -> KeptKeys | None:
        """The keys that stay, by the attention of all passes."""
        score = of_key_heads(view.received["all"], view.keys.shape[1])
        if "score" in view.by_key:
            score = score + view.by_key["score"]
        view.by_key["score"] = score
        free = self.free(view.kind, view.valid, view.keys.shape[1])
        heavy, recent = self.budgets(view, free, heavy=self.config.heavy, recent=self.config.recent)
        return self.kept(view, free, heavy_and_recent(score, free, heavy, recent))
