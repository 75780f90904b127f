"""What reducers share that drop visual tokens before a few layers of the LLM, fewer and fewer of them.

B rows, P positions of the whole row, K positions kept so far
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmllm.errors import ConfigError, InputError
from mmllm.fields import require
from mmllm.interfaces import Explanation, LlmReducer
from mmllm.llm.values import LlmPass, PruneView
from mmllm.pruning.selection import ranks


def require_steps(config: Any, first: int) -> None:
    """Refuses a configuration whose `layers` do not ascend from `first` on, or whose `ratios` are not falling.

    Raises:
        ConfigError: naming the field and what is allowed.
    """
    layers, ratios = config.layers, config.ratios
    ascending = all(a < b for a, b in zip((first - 1, *layers), layers, strict=False))
    require(bool(layers) and ascending, config, "layers", f"ascending layers from {first} on")
    falling = all(a >= b > 0 for a, b in zip((1.0, *ratios), ratios, strict=False))
    require(falling, config, "ratios", "falling fractions from at most 1 to above 0")


def equal_steps(share: float, count: int) -> list[float]:
    """Falling fractions with equal ratios between them, the last of which is the share."""
    return [round(share ** (step / count), 4) for step in range(1, count + 1)]


class StepReducer(LlmReducer):
    """A reducer that ranks visual tokens in a few steps. Its notes are positions and scores (B K) by layer."""

    ranked_by: ClassVar[str]
    """What it ranks tokens by, in words."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def check(self, layers: int) -> None:
        """Refuses an LLM that does not have all of these layers.

        Raises:
            ConfigError: naming both numbers.
        """
        if self.before_layers[-1] >= layers:
            raise ConfigError(
                f"{type(self.config).__name__}.layers = {self.config.layers}: tokens are dropped before layer "
                f"{self.before_layers[-1]}, which must be below the LLM's {layers} layers"
            )

    @property
    def before_layers(self) -> tuple[int, ...]:
        """The layers, counted from 0, before which tokens are dropped."""
        return self.config.layers

    @property
    def restarts_positions(self) -> bool:
        """Whether `positions` says so."""
        return self.config.positions == "restart"

    def best(self, view: PruneView, score: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The visual positions with the highest scores, and all visual ones: bool, B K twice. It notes the scores.

        Args:
            view: before a layer.
            score: float32, B K.
            counts: how many of each row.

        Raises:
            InputError: if a score is not finite.
        """
        if not bool(score.isfinite().all()):
            raise InputError(f"{self.ranked_by} is not finite")
        view.notes[view.layer] = (view.before.position, score)
        visual = view.before.of(view.current.visual) & view.before.valid
        count = torch.tensor(counts, device=visual.device).unsqueeze(-1)
        return (ranks(score.masked_fill(~visual, -torch.inf)) < count) & visual, visual

    def explain_pass(self, current: LlmPass) -> Explanation | None:
        """What each visual token was ranked by in the last step that ranked it, B P."""
        notes = current.notes_of(self)
        values = None
        for layer in self.before_layers:
            if layer in notes:
                later = current.on_visual(*notes[layer])
                values = later if values is None else torch.where(later.isfinite(), later, values)
        return None if values is None else Explanation(name=self.ranked_by, values=values)
