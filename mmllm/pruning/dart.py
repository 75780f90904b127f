"""DART: of tokens that are alike, a few stay: those least like a handful of pivots (EMNLP 2025, arXiv 2502.11494).

    pivots   = the visual and the later text tokens with the largest keys
    kept     = the visual pivots, and for each pivot in turn the visual tokens that are least like it

Nothing of the attention is needed, so every attention kernel will do. Kept tokens keep their positions. With `layer=0`
tokens are compared and dropped before the first layer, by their embeddings, as TensorRT Edge-LLM does.

B rows, P positions of the whole row, K positions kept so far, D LLM width, H G key heads and their width
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import normalize

from mmllm.errors import ConfigError, InputError
from mmllm.fields import require
from mmllm.interfaces import LlmReducer, Origin
from mmllm.llm.values import AttentionView, PruneDecision, PruneView
from mmllm.pruning.budget import BUDGET_GUARD, early_layer
from mmllm.registry import register


@dataclass(frozen=True, kw_only=True)
class DartConfig:
    """The defaults are the paper's."""

    layer: int = 2
    """The first layer, counted from 0, that reads only the kept tokens."""
    ratio: float = 0.222
    """Fraction of the visual tokens that are kept beside the visual pivots."""
    visual_pivots: int = 4
    text_pivots: int = 4

    def __post_init__(self) -> None:
        require(self.layer >= 0, self, "layer", "zero or more")
        require(0 < self.ratio <= 1, self, "ratio", "above 0 and at most 1")
        require(self.visual_pivots >= 1, self, "visual_pivots", "at least 1")
        require(self.text_pivots >= 0, self, "text_pivots", "zero or more")


@register("reducer", "dart", config=DartConfig)
class DartReducer(LlmReducer):
    """DART: inside the LLM, drops visual tokens that are like others, around a few pivots."""

    origin = Origin(
        original="arXiv 2502.11494, as in LightCompress 9701d035",
        compared_with="its rule written out",
        equal="the same tokens, by states and keys of a plain run",
    )
    other_needs = "keys and states of one layer"

    def __init__(self, config: DartConfig) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def settings_at(cls, share: float, *, tokens: int, layers: int) -> dict[str, Any]:
        """The ratio, from the paper's depth on."""
        return {"layer": early_layer(layers), "ratio": share}

    def check(self, layers: int) -> None:
        """Refuses an LLM that has no such layer.

        Raises:
            ConfigError: naming both numbers.
        """
        if self.config.layer >= layers:
            raise ConfigError(f"DartConfig.layer = {self.config.layer}: must be below the LLM's {layers} layers")

    def attention_rows(self, view: AttentionView) -> None:
        """None: it only looks at the keys of the layer before, whose size it notes."""
        if view.phase == "prompt" and view.layer + 1 == self.config.layer:
            notes = view.current.notes_of(self)
            notes[view.layer] = rearrange(view.keys.float(), "b h n g -> b n (h g)").abs().sum(-1)  # B K

    def prune(self, view: PruneView) -> PruneDecision | None:
        """The visual tokens that the layer reads, and everything that is not visual.

        Raises:
            InputError: if states or keys are not finite.
        """
        if view.layer != self.config.layer:
            return None
        before, current = view.before, view.current
        visual = before.of(current.visual) & before.valid
        states = view.hidden if view.layer == 0 else view.final_norm(view.hidden)
        size = states.float().abs().sum(-1) if view.layer == 0 else view.notes[view.layer - 1]
        if not bool((states.isfinite().all(-1) & size.isfinite() | ~before.valid).all()):
            raise InputError("DART got states or keys that are not finite")
        place = torch.arange(visual.shape[1], device=visual.device)
        behind = place > torch.where(visual, place, -1).amax(-1, keepdim=True)
        text = before.of(current.prompt) & before.valid & ~visual & behind
        keep = torch.stack([self._kept(*row) for row in zip(states.detach(), size, visual, text, strict=True)])
        return PruneDecision(keep=keep | ~visual)

    def _kept(self, states: Tensor, size: Tensor, visual: Tensor, text: Tensor) -> Tensor:
        """bool, K: the visual tokens of one row that are kept.

        Args:
            states: K D.
            size: float32, K. Of the keys.
            visual, text: bool, K. Among which pivots are chosen.
        """
        pivots = [
            size.masked_fill(~among, -torch.inf).topk(min(most, int(among.sum()))).indices
            for among, most in ((visual, self.config.visual_pivots), (text, self.config.text_pivots))
        ]
        keep = torch.zeros_like(visual)
        keep[pivots[0]] = True
        count = self.of_each_pivot(int(visual.sum()))
        unit, free = normalize(states.float(), dim=-1), visual & ~keep
        for pivot in torch.cat([part.sort().values for part in pivots]).tolist():
            likeness = (unit @ unit[pivot]).masked_fill(~free, torch.inf)
            least = likeness.argsort(stable=True)[: min(count, int(free.sum()))]
            keep[least] = True
            free[least] = False
        return keep

    def of_each_pivot(self, tokens: int) -> int:
        """How many of `tokens` visual tokens each pivot adds."""
        pivots = self.config.visual_pivots + self.config.text_pivots
        return int(tokens * self.config.ratio / pivots + BUDGET_GUARD)
