"""Keys drawn at random beside the newest ones: the baseline for every policy that scores keys.

B rows, G key heads, K keys
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mmllm.context.budgets import Budget, require_budget
from mmllm.context.evicting import EvictingConfig, EvictingPolicy, sum_of
from mmllm.context.keeping import heavy_and_recent
from mmllm.context.noise import uniform
from mmllm.fields import require_seed
from mmllm.llm.values import AttentionView, KeptKeys
from mmllm.registry import register


@dataclass(frozen=True, kw_only=True)
class RandomConfig(EvictingConfig):
    """Settings of `Random`."""

    drawn: Budget = 0.1
    """Keys that stay by chance: a count, or a share of the prompt."""
    recent: Budget = 0.1
    """The newest keys, which stay."""
    seed: int = 0
    """Another seed, other keys."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("drawn", "recent"):
            require_budget(self, field)
        require_seed(self.seed, "RandomConfig.seed")


@register("context", "random", config=RandomConfig)
class Random(EvictingPolicy):
    """Keys drawn at random in each layer and key head, and the newest ones: a baseline."""

    config: RandomConfig

    def __init__(self, config: RandomConfig) -> None:
        self.config = config

    def budget_of(self, free: int) -> int:
        """Drawn and recent keys."""
        return sum_of(self.config.drawn, self.config.recent, free)

    def evict(self, view: AttentionView) -> KeptKeys | None:
        """The keys with the highest numbers, which depend on layer, key head and position only."""
        heads = view.keys.shape[1]
        free = self.free(view.kind, view.valid, heads)
        drawn, recent = self.chosen_and_recent(view, free, self.config.drawn, self.config.recent)
        head = torch.arange(heads, device=free.device)[:, None]
        score = uniform(self.config.seed, view.layer, head, view.number)
        return self.kept(view, free, heavy_and_recent(score, free, drawn, recent))
