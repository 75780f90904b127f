"""What policies that evict keys have in common: budgets fixed by the prompt, protected kinds, and how often they act.

B rows, G key heads, K keys
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmllm.context.budgets import Budget, count_of, counts_of
from mmllm.context.keeping import kept_keys
from mmllm.context.protecting import is_protected, require_kinds
from mmllm.fields import require
from mmllm.interfaces import ContextFamily, ContextPolicy
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


def sum_of(chosen: Budget, recent: Budget, free: int) -> int:
    """How many of so many keys stay by choice and as the newest ones."""
    return max(1, count_of(chosen, free, least=0) + count_of(recent, free, least=0))


class EvictingPolicy(ContextPolicy):
    """Evicts keys after a pass, or before the next one."""

    family: ContextFamily = "evict"
    depends_on_question = False
    config: EvictingConfig

    @property
    def keeps_prefix(self) -> bool:
        """Whether the video's part of the cache is kept: keys are then evicted before a question is read."""
        return not self.depends_on_question

    def free(self, kind: Tensor, valid: Tensor, heads: int = 1) -> Tensor:
        """bool, B G K: the real keys that are not protected; B 1 K for one head, if all heads have the same keys.

        Args:
            kind: int64, B G K (or B 1 K).
            valid: bool, like `kind`.
            heads: G.
        """
        free = valid & ~is_protected(kind, self.config.protect)
        return free.expand(-1, max(heads, free.shape[1]), -1)

    def keys_held(self, visual: int) -> int:
        """The budget, unless visual tokens are protected."""
        return visual if "visual" in self.config.protect else min(visual, self.budget_of(visual))

    def budget_of(self, free: int) -> int:
        """How many keys stay of so many that are not protected."""
        raise NotImplementedError

    def budgets(self, view: AttentionView, free: Tensor, *, least: int = 1, **budgets: Budget) -> list[Tensor]:
        """int64, B each: the counts of budgets, which the prompt fixes.

        Args:
            view: of an attention.
            free: bool, B G K.
            least: the least count that a share can be.
            budgets: by name.
        """
        for name, budget in budgets.items():
            if name not in view.state:
                view.state[name] = counts_of(budget, free, least=least)
        return [view.state[name] for name in budgets]

    def chosen_and_recent(
        self, view: AttentionView, free: Tensor, chosen: Budget, recent: Budget
    ) -> tuple[Tensor, Tensor]:
        """int64, B each: how many keys stay by choice, and how many as the newest ones; of both together at least one.

        Args:
            view: of an attention.
            free: bool, B G K.
            chosen, recent: their budgets.
        """
        most, newest = self.budgets(view, free, least=0, chosen=chosen, recent=recent)
        return most, torch.where(most + newest == 0, 1, newest)

    def kept(self, view: AttentionView, free: Tensor, stay: Tensor) -> KeptKeys | None:
        """What stays of the free keys (bool, B G K), and all protected ones; None while too few would go."""
        valid = view.valid.expand_as(free)
        if view.phase == "token":
            waits = (free & ~stay).sum(-1).amax(-1) < self.config.every
            stay = stay | (free & waits[:, None, None])
        return kept_keys(stay | (valid & ~free), valid)
