"""PyramidDrop: at a few layers of the LLM, fewer and fewer visual tokens go on (CVPR 2025, arXiv 2410.17247).

    before layers 8, 16, 24: the attention of the prompt's last position in that layer -> 1/2, 1/4, 1/8 of all stay

Attention is looked at beforehand, in the layer that then runs on what remains. As published, positions of the prompt
count from the start again after each step; `positions=keep` leaves them. An answer keeps its positions.

B rows, P positions of the whole row, K positions kept so far
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mmllm.fields import require
from mmllm.interfaces import Origin
from mmllm.llm.values import PruneDecision, PruneView
from mmllm.pruning.budget import BUDGET_GUARD
from mmllm.pruning.steps import StepReducer, equal_steps, require_steps
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
        require_steps(self, first=1)
        require(len(self.ratios) == len(self.layers), self, "ratios", f"as many as layers: {len(self.layers)}")


@register("reducer", "pyramiddrop", config=PyramidDropConfig)
class PyramidDropReducer(StepReducer):
    """PyramidDrop: inside the LLM, keeps fewer visual tokens from step to step, by the prompt's last position."""

    origin = Origin(
        original="Cooperx521/PyramidDrop 6444f30, arXiv 2410.17247",
        compared_with="its rule written out",
        equal="two steps run by hand: the same tokens, logits <= 1e-5",
    )
    other_needs = "attention of the prompt's last position in the layers it names"
    ranked_by: ClassVar[str] = "PyramidDrop: attention of the prompt's last position"

    @classmethod
    def settings_at(cls, share: float, *, tokens: int, layers: int) -> dict[str, Any]:
        """Three equal steps down to the share, after each quarter of the layers; for 1/8 of 32 they are the paper's.

        An LLM of few layers has fewer steps.
        """
        quarters = sorted({max(1, layers * quarter // 4) for quarter in (1, 2, 3)})
        return {"layers": quarters, "ratios": equal_steps(share, len(quarters))}

    def prune(self, view: PruneView) -> PruneDecision | None:
        """The visual tokens that the next layer reads, and everything that is not visual.

        Raises:
            InputError: if the attention is not finite.
        """
        if view.layer not in self.config.layers:
            return None
        ratio = self.config.ratios[self.config.layers.index(view.layer)]
        current = view.current
        score = view.attention_ahead(asking_rows(view, training=self.training))
        first = (current.visual & current.valid).sum(-1).tolist()
        counts = [max(1, int(tokens * ratio + BUDGET_GUARD)) for tokens in first]
        chosen, visual = self.best(view, score, counts)
        return PruneDecision(keep=chosen | ~visual, restart=self.restarts_positions)


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
