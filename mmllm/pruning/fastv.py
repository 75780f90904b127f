"""FastV: after an early layer of the LLM, keep the tokens that the prompt's last position attends to (ECCV 2024).

    layers 0..K-1: all tokens | attention of layer K-1, last row, mean over heads -> the highest stay | layers K..

No training. Kept tokens keep their positions; layers below K cache all tokens, the others only those that are kept.
The decision is made while the prompt is read and holds for the whole answer (arXiv 2403.06764).

With `merge=true` each dropped token is averaged into the most similar kept one, as HoliTom does inside the LLM
(arXiv 2505.21334).

B rows, P positions of the whole row, K positions kept so far, D LLM width
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmllm.errors import ConfigError, InputError
from mmllm.fields import require
from mmllm.interfaces import Explanation, LlmReducer, Origin
from mmllm.llm.values import AttentionView, LlmPass, PruneDecision, PruneView
from mmllm.pruning.budget import BUDGET_GUARD, early_layer
from mmllm.pruning.selection import ranks
from mmllm.registry import register


@dataclass(frozen=True, kw_only=True)
class FastvConfig:
    """The defaults are the paper's K = 2 and R = 50 %."""

    layer: int = 2
    """K: the first layer, counted from 0, that reads only the kept tokens."""
    ratio: float = 0.5
    """Fraction of the visual tokens that are kept: 1 - R."""
    merge: bool = False
    """Average each dropped token into the most similar kept one, as HoliTom does; the paper's FastV drops them."""

    def __post_init__(self) -> None:
        require(self.layer >= 1, self, "layer", "at least 1: tokens are ranked by the attention of the layer before")
        require(0 < self.ratio <= 1, self, "ratio", "above 0 and at most 1")


@register("reducer", "fastv", config=FastvConfig)
class FastvReducer(LlmReducer):
    """FastV: inside the LLM, keeps the visual tokens that the prompt's last position attends to most."""

    origin = Origin(
        original="pkunlp-icler/FastV d165972, arXiv 2403.06764; merge=true: cokeshao/HoliTom e9b2972, arXiv 2505.21334",
        compared_with="its rule written out",
        equal="the tokens of transformers' eager attention; logits of later layers run by hand, <= 1e-5",
    )
    other_needs = "attention of the prompt's last position in one layer"

    def __init__(self, config: FastvConfig) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def settings_at(cls, share: float, *, tokens: int, layers: int) -> dict[str, Any]:
        """The ratio, from the paper's depth on."""
        return {"layer": early_layer(layers), "ratio": share}

    def check(self, layers: int) -> None:
        """Refuses an LLM that has no layer K.

        Raises:
            ConfigError: naming both numbers.
        """
        if self.config.layer >= layers:
            raise ConfigError(f"FastvConfig.layer = {self.config.layer}: must be below the LLM's {layers} layers")

    def attention_rows(self, view: AttentionView) -> dict[str, Tensor] | None:
        """The last position of the prompt, in layer K - 1."""
        if view.phase != "prompt" or view.layer + 1 != self.config.layer:
            return None
        kept = view.current.kept_at(view.layer)
        prompt = kept.of(view.current.prompt) & kept.valid
        place = torch.arange(prompt.shape[1], device=prompt.device)
        last = torch.where(prompt, place, -1).amax(-1, keepdim=True)
        return {"last": (place == last).float()}

    def prune(self, view: PruneView) -> PruneDecision | None:
        """The visual tokens that layer K reads, and everything that is not visual.

        Raises:
            InputError: if the attention is not finite.
        """
        if view.layer != self.config.layer:
            return None
        visual = view.before.of(view.current.visual) & view.before.valid
        score = view.received["last"]
        if not bool(score.isfinite().all()):
            raise InputError("FastV got attention that is not finite")
        count = torch.tensor([self.kept(int(tokens)) for tokens in visual.sum(-1)], device=visual.device)
        chosen = ranks(score.masked_fill(~visual, -torch.inf)) < count.unsqueeze(-1)
        view.notes[view.layer] = (view.before.position, score)
        keep, hidden = chosen & visual | ~visual, None
        if self.config.merge:
            rows = zip(view.hidden, chosen & visual, ~chosen & visual, strict=True)
            hidden = torch.stack([averaged_into_kept(*row) for row in rows])
        return PruneDecision(keep=keep, hidden=hidden)

    def kept(self, tokens: int) -> int:
        """How many of `tokens` visual tokens are kept: at least 1, and a half is rounded up."""
        return min(tokens, max(1, math.floor(tokens * self.config.ratio + 0.5 + BUDGET_GUARD)))

    def explain_pass(self, current: LlmPass) -> Explanation | None:
        """The last position's attention to every visual token, B P."""
        notes = current.notes_of(self)
        if self.config.layer not in notes:
            return None
        position, score = notes[self.config.layer]
        values = current.on_visual(position, score)
        return Explanation(name="FastV: attention of the prompt's last position", values=values)


def averaged_into_kept(states: Tensor, kept: Tensor, dropped: Tensor) -> Tensor:
    """K D: the states, in which each kept token is averaged with every dropped one that is most similar to it.

    That goes pairwise and in order, so of several tokens the last counts half, the one before a quarter, and so on.

    Args:
        states: float, K D.
        kept, dropped: bool, K.
    """
    kept_at, dropped_at = kept.nonzero()[:, 0], dropped.nonzero()[:, 0]
    if not len(kept_at) or not len(dropped_at):
        return states
    unit = normalize(states.detach().float(), dim=-1)
    owner = (unit[dropped_at] @ unit[kept_at].mT).argmax(-1)  # numbers of kept ones
    size = torch.bincount(owner, minlength=len(kept_at))
    order = owner.argsort(stable=True)  # together, each group in order
    number = torch.arange(len(order), device=order.device)
    place = torch.empty_like(owner).scatter(0, order, number - (size.cumsum(0) - size)[owner[order]])
    weight = 0.5 ** (size[owner] - place)
    merged = states[kept_at].float() * (0.5**size).unsqueeze(-1)
    merged = merged.index_add(0, owner, states[dropped_at].float() * weight.unsqueeze(-1))
    return states.index_copy(0, kept_at, merged.to(states.dtype))
