"""What policies that evict keys have in common: budgets fixed by the prompt, protected kinds, and how often they act.

B rows, N new positions, H query heads, G key heads, K keys
"""

from __future__ import annotations

from dataclasses import dataclass

from einops import reduce
from torch import Tensor

from mmllm.context.budgets import Budget, counts_of
from mmllm.context.keeping import kept_keys
from mmllm.context.protecting import is_protected, require_kinds
from mmllm.fields import require
from mmllm.interfaces import ContextPolicy
from mmllm.llm.values import AttentionView, KeptKeys

PROTECTED = ("system", "time", "question")


@dataclass(frozen=True, kw_only=True)
class EvictingConfig:
    """Settings of every policy that evicts keys."""

    protect: tuple[str, ...] = PROTECTED
    """Kinds of positions that always stay and count in no budget: system, time, visual, text, question; or none."""
    every: int = 1
    """Keys are evicted once so many are there beyond the budget: gathering them at each token costs time."""

    def __post_init__(self) -> None:
        require_kinds(self.protect, f"{type(self).__name__}.protect")
        require(self.every >= 1, self, "every", "at least 1")


class EvictingPolicy(ContextPolicy):
    """Evicts keys after a pass, or before the next one."""

    family = "evict"
    depends_on_question = False
    config: EvictingConfig

    @property
    def keeps_prefix(self) -> bool:
        """Whether the video's part of the cache is kept: keys are then evicted before a question is read."""
        return not self.depends_on_question

    def free(self, kind: Tensor, valid: Tensor, heads: int) -> Tensor:
        """bool, B G K: the real keys that are not protected.

        Args:
            kind: int64, B G K (or B 1 K).
            valid: bool, like `kind`.
            heads: G.
        """
        return (valid & ~is_protected(kind, self.config.protect)).expand(-1, heads, -1)

    def budgets(self, view: AttentionView, free: Tensor, **budgets: Budget) -> list[Tensor]:
        """int64, B each: the counts of budgets, which the prompt fixes.

        Args:
            view: of an attention.
            free: bool, B G K.
            budgets: by name.
        """
        for name, budget in budgets.items():
            if name not in view.state:
                view.state[name] = counts_of(budget, free)
        return [view.state[name] for name in budgets]

    def kept(self, view: AttentionView, free: Tensor, stay: Tensor) -> KeptKeys | None:
        """What stays of the free keys (bool, B G K), and all protected ones; None while too few would go."""
        valid = view.valid.expand_as(free)
        if view.phase == "token" and int((free & ~stay).sum(-1).max()) < self.config.every:
            return None
        return kept_keys(stay | (valid & ~free), valid)


def of_key_heads(received: Tensor, heads: int) -> Tensor:
    """float32, B G K: the sum over the query heads (B H K) of each key head."""
    return reduce(received, "b (g r) k -> b g k", "sum", g=heads)
