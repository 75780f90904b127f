"""Settings of the search for the cheapest reducer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mmllm import registry
from mmllm.fields import require, require_seed

Cost = Literal["operations", "tokens"]


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """What is searched for, and how."""

    target_miou: float = 0.95
    """Share of the unreduced model's mIoU that a setting has to reach."""
    reducers: tuple[str, ...] = ()
    """Names of reducers, with fields that stay as they are: `fastv:layer=3`. Empty for all."""
    budgets: tuple[float, ...] = (0.75, 0.5, 0.25, 0.125, 0.05)
    """Shares of the tokens."""
    cost: Cost = "operations"
    """What is cheap: few operations of the LLM's pass over a prompt, or few tokens in its layers."""
    first_clips: int = 8
    """Clips of the first rung."""
    halving: int = 2
    """Each rung has so many times the clips of the one before, and one of so many settings goes on."""
    max_new_tokens: int = 64
    """Longest answer."""
    seed: int = 0
    """Decides in which order clips are taken."""

    def __post_init__(self) -> None:
        for reducer in self.reducers:
            registry.find("reducer", registry.named("reducer", reducer)[0])
        require(0 < self.target_miou <= 1, self, "target_miou", "a share of the unreduced mIoU, above 0 and at most 1")
        shares = bool(self.budgets) and all(0 < share < 1 for share in self.budgets)
        require(shares, self, "budgets", "shares of the tokens above 0 and below 1")
        require(self.first_clips >= 2, self, "first_clips", "at least 2: of one clip nothing is said of the others")
        require(self.halving >= 2, self, "halving", "at least 2")
        require_seed(self.seed, "seed")
