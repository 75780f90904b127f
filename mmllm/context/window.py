"""The newest keys only: a baseline that shows what sinks and heavy hitters add.

B rows, G key heads, K keys
"""

from __future__ import annotations

from dataclasses import dataclass

from mmllm.context.budgets import Budget, count_of, require_budget
from mmllm.context.evicting import EvictingConfig, EvictingPolicy
from mmllm.context.keeping import recent_keys
from mmllm.llm.values import AttentionView, KeptKeys
from mmllm.registry import register


@dataclass(frozen=True, kw_only=True)
class WindowConfig(EvictingConfig):
    """Settings of `Window`."""

    recent: Budget = 0.2
    """The newest keys, which stay: a count, or a share of the prompt."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_budget(self, "recent")


@register("context", "window", config=WindowConfig)
class Window(EvictingPolicy):
    """The newest keys: a baseline."""

    config: WindowConfig

    def __init__(self, config: WindowConfig) -> None:
        self.config = config

    def budget_of(self, free: int) -> int:
        """Recent keys."""
        return count_of(self.config.recent, free)

    def evict(self, view: AttentionView) -> KeptKeys | None:
        """The newest keys."""
        free = self.free(view.kind, view.valid)
        (recent,) = self.budgets(view, free, recent=self.config.recent)
        return self.kept(view, free, recent_keys(free, recent))
