"""PyramidDrop: at a few layers of the LLM, fewer and fewer visual tokens go on (CVPR 2025, arXiv 2410.17247).

    before layers 8, 16, 24: the attention of the prompt's last position in that layer -> 1/2, 1/4, 1/8 of all stay

Attention is looked at beforehand, in the layer that then runs on what remains. As published, positions of the prompt
count from the start again after each step; `positions=keep` leaves them. An answer keeps its positions.

B rows, P positions of the whole row, K positions kept so far
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mmllm.errors import ConfigError, InputError
from mmllm.fields import require
from mmllm.interfaces import Explanation, LlmReducer
from mmllm.llm.values import LlmPass, PruneDecision, PruneView
from mmllm.pruning.budget import BUDGET_GUARD
from mmllm.pruning.selection import ranks
from mmllm.registry import register


@dataclass(frozen=True, kw_only=True)
class PyramidDropConfig:
    """The defaults are the paper's, for an LLM of 32 layers."""

    layers: tuple[int, ...] = (8, 16, 24)
    """The layers, counted from 0, before which tokens are dropped."""
    ratios: tuple[float, ...] = (0.5, 0.25, 0.125)
    """Fractions of the first number of visual tokens that go into each of these layers."""
    positions: Literal["restart", "keep"] = "restart"
    """Whether what remains of the prompt is rotated as if nothing had stood between."""

    def __post_init__(self) -> None:
        ascending = all(a < b for a, b in zip((0, *self.layers), self.layers, strict=False))
        require(bool(self.layers) and ascending, self, "layers", "ascending layers from 1 on")
        falling = all(a >= b > 0 for a, b in zip((1.0, *self.ratios), self.ratios, strict=False))
        require(falling, self, "ratios", "falling fractions from at most 1 to above 0")
        require(len(self.ratios) == len(self.layers), self, "ratios", f"as many as layers: {len(self.layers)}")


@register("reducer", "pyramiddrop", config=PyramidDropConfig)
class PyramidDropReducer(LlmReducer):
    """PyramidDrop: inside the LLM, keeps fewer visual tokens from step to step, by the prompt's last position."""

    def __init__(self, config: PyramidDropConfig) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def settings_at(cls, share: float, *, tokens: int, layers: int) -> dict[str, Any]:
        """Three equal steps down to the share, after each quarter of the layers; for 1/8 of 32 they are the paper's.

        An LLM of few layers has fewer steps.
        """
        quarters = sorted({max(1, layers * quarter // 4) for quarter in (1, 2, 3)})
        steps = range(1, len(quarters) + 1)
        return {"layers": quarters, "ratios": [round(share ** (step / len(quarters)), 4) for step in steps]}

    def check(self, layers: int) -> None:
        """Refuses an LLM that does not have all of these layers.

        Raises:
            ConfigError: naming both numbers.
        """
        if self.config.layers[-1] >= layers:
            raise ConfigError(
                f"PyramidDropConfig.layers = {self.config.layers}: must be below the LLM's {layers} layers"
            )

    @property
    def restarts_positions(self) -> bool:
        """Whether `positions` says so."""
        return self.config.positions == "restart"

    def prune(self, view: PruneView) -> PruneDecision | None:
        """The visual tokens that the next layer reads, and everything that is not visual.

        Raises:
            InputError: if the attention is not finite.
        """
        if view.layer not in self.config.layers:
            return None
        ratio = self.config.ratios[self.config.layers.index(view.layer)]
        current, before = view.current, view.before
        visual = before.of(current.visual) & before.valid
        score = view.attention_ahead(asking_rows(view, training=self.training))
        if not bool(score.isfinite().all()):
            raise InputError("PyramidDrop got attention that is not finite")
        first = (current.visual & current.valid).sum(-1).tolist()
        count = torch.tensor([max(1, int(tokens * ratio + BUDGET_GUARD)) for tokens in first], device=visual.device)
        chosen = ranks(score.masked_fill(~visual, -torch.inf)) < count.unsqueeze(-1)
        view.notes[view.layer] = (before.position, score)
        return PruneDecision(keep=chosen & visual | ~visual, restart=self.restarts_positions)

    def explain_pass(self, current: LlmPass) -> Explanation | None:
        """The attention to each visual token in the last step that ranked it, B P."""
        notes = current.notes_of(self)
        if not notes:
            return None
        values = current.on_visual(*notes[min(notes)])
        for layer in sorted(notes)[1:]:
            later = current.on_visual(*notes[layer])
            values = torch.where(later.isfinite(), later, values)
        return Explanation(name="PyramidDrop: attention of the prompt's last position", values=values)


def asking_rows(view: PruneView, *, training: bool) -> Tensor:
    """float, B K: the rows whose attention counts, as weights that add up to 1.

    In training those are all positions right before a position of an answer; otherwise the prompt's last position.
    """
    before, current = view.before, view.current
    prompt = before.of(current.prompt) & before.valid
    answer = before.valid & ~prompt & training
    next_is_answer = torch.nn.functional.pad(answer[:, 1:], (0, 1)) & before.valid
    place = torch.arange(prompt.shape[1], device=prompt.device)
    last = place == torch.where(prompt, place, -1).amax(-1, keepdim=True)
    rows = torch.where(next_is_answer.any(-1, keepdim=True), next_is_answer, last).float()
    return rows / rows.sum(-1, keepdim=True).clamp(min=1)
