"""Keyformer (arXiv 2403.09054): key tokens by attention with Gumbel noise, and the most recent ones.

The noise decides what stays. It never touches the attention itself.

B rows, N new positions, H query heads, G key heads, K keys, R query rows
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from einops import repeat
from torch import Tensor

from mmllm.context.budgets import Budget, count_of, counts_of, require_budget
from mmllm.context.evicting import EvictingConfig
from mmllm.context.noise import gumbel
from mmllm.context.scored import ScoredPolicy
from mmllm.fields import require, require_seed
from mmllm.llm.values import AttentionView, KeptKeys
from mmllm.registry import register

Noise = Callable[[AttentionView, Tensor], Tensor]
"""Of an attention and its query rows (int64, R): float32, B H R K."""


@dataclass(frozen=True, kw_only=True)
class KeyformerConfig(EvictingConfig):
    """Settings of `Keyformer`."""

    budget: Budget = 0.6
    """Keys that stay: a count, or a share of the prompt."""
    recent: float = 0.3
    """The share of them that are the newest keys; the others are key tokens."""
    tau_init: float = 1.0
    """Temperature of the score in the prompt."""
    tau_delta: float = 0.01
    """What is added to it in each later pass; the paper goes from 1 to 2 over an answer."""
    seed: int = 0
    """Another seed, other noise."""
    rule: Literal["paper", "released"] = "paper"
    """paper evicts; released hides keys for good, as the authors' masks do, so that no token of an answer becomes a key
    token. It saves no memory."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_budget(self, "budget")
        require(0 <= self.recent <= 1, self, "recent", "a share from 0 to 1")
        require(self.tau_init > 0, self, "tau_init", "above 0")
        require(self.tau_delta >= 0, self, "tau_delta", "0 or more")
        require_seed(self.seed, "KeyformerConfig.seed")


@register("context", "keyformer", config=KeyformerConfig)
class Keyformer(ScoredPolicy):
    """Key tokens by attention with Gumbel noise, and the most recent ones.

    Args:
        config: its settings.
        noise: gives the noise; by default it follows from seed, layer, head and positions.
    """

    config: KeyformerConfig

    def __init__(self, config: KeyformerConfig, noise: Noise | None = None) -> None:
        self.config = config
        self.masks = self.loses = config.rule == "released"
        self.family = "select" if self.masks else "evict"
        self._noise = self._by_position if noise is None else noise

    def budget_of(self, free: int) -> int:
        """Key tokens and recent ones."""
        return count_of(self.config.budget, free)

    def counts(self, view: AttentionView, free: Tensor) -> tuple[Tensor, Tensor]:
        """int64, B each: key tokens, and recent ones."""
        if "recent" not in view.state:
            budget = counts_of(self.config.budget, free)
            view.state["recent"] = (budget * self.config.recent + 1e-9).floor().long()
            view.state["heavy"] = budget - view.state["recent"]
        return view.state["heavy"], view.state["recent"]

    def shaped_logits(self, view: AttentionView, logits: Tensor, rows: Tensor) -> Tensor:
        """Logits with noise, divided by the temperature of this pass."""
        step = view.state.get("step", torch.zeros(len(logits), device=logits.device))
        tau = self.config.tau_init + step * self.config.tau_delta
        return (logits + self._noise(view, rows)) / tau[:, None, None, None]

    def evict(self, view: AttentionView) -> KeptKeys | None:
        """As every scored policy; the next pass has another temperature."""
        step = view.state.get("step", torch.zeros(len(view.query), device=view.query.device))
        view.state["step"] = step + 1
        return super().evict(view)

    def _by_position(self, view: AttentionView, rows: Tensor) -> Tensor:
        """float32, B H R K: noise of each head, query and key."""
        heads, key_heads = view.query.shape[1], view.keys.shape[1]
        key = repeat(view.number.expand(-1, key_heads, -1), "b g k -> b (g r) 1 k", r=heads // key_heads)
        query = view.number[:, :1, -view.query.shape[2] :][..., rows].unsqueeze(-1)  # B 1 R 1
        head = torch.arange(heads, device=key.device)[:, None, None]
        return gumbel(self.config.seed, view.layer, head, query, key)
