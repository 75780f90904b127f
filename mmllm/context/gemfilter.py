"""GemFilter: an early layer says which positions of the prompt the LLM reads at all (arXiv 2409.17422).

    layers 0..r over the whole prompt: logits of its last query, summed over heads, averaged over 5 neighbours
    -> the k highest positions, in order -> layers 0..L-1 over these only, counted from 0; the answer follows them

B rows, P positions of the prompt, H query heads, G key heads, D head width
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d

from mmllm.context.choosing import best_of_rows, logits_of
from mmllm.errors import ConfigError
from mmllm.fields import require
from mmllm.interfaces import ContextPolicy, Explanation
from mmllm.llm.kinds import PositionKind
from mmllm.llm.values import LlmPass, PruneDecision, PruneView
from mmllm.registry import register

KERNEL = 5
"""Neighbours over which scores are averaged."""


def pooled_scores(query: Tensor, keys: Tensor, valid: Tensor) -> Tensor:
    """float32, B P: how much the last query asks for each position, averaged over neighbours.

    Logits are neither scaled nor normalised. At both ends of a row zeros count as neighbours.

    Args:
        query: B H D, the last query of each row, rotated.
        keys: B G P D, rotated.
        valid: bool, B P. False at padding.
    """
    scores = logits_of(query.unsqueeze(2), keys)[:, :, 0].sum(1) * valid
    return avg_pool1d(scores.unsqueeze(1), KERNEL, stride=1, padding=KERNEL // 2).squeeze(1)


@dataclass(frozen=True, kw_only=True)
class GemFilterConfig:
    """How much is read, and which layer says what."""

    top_k: int = 1024
    """Positions of the prompt that are read, beside those that are read in any case."""
    layer: int | None = None
    """r: the layer, counted from 0, that ranks positions. None for 0.4 of the LLM's layers; the paper has 13 of 32."""
    positions: Literal["restart", "keep"] = "restart"
    """Whether what is read counts from 0, and the answer goes on behind it, or all keep the positions of the prompt."""
    text: bool = True
    """Read the system prompt, the question, other text, and the times of kept frames in any case; else as published."""

    def __post_init__(self) -> None:
        require(self.top_k >= 1, self, "top_k", "at least 1")
        require(self.layer is None or self.layer >= 0, self, "layer", "0 or more")


@register("context", "gemfilter", config=GemFilterConfig)
class GemFilter(ContextPolicy):
    """GemFilter: an early layer says which positions of the prompt the LLM reads at all."""

    family = "shorten"

    def __init__(self, config: GemFilterConfig) -> None:
        self.config = config

    def check(self, layers: int) -> None:
        """Refuses a layer that the LLM does not have.

        Raises:
            ConfigError: naming both numbers.
        """
        if self.filter_layer(layers) >= layers:
            raise ConfigError(f"GemFilterConfig.layer = {self.config.layer}: must be below the LLM's {layers} layers")

    def filter_layer(self, layers: int) -> int:
        """r, in an LLM of so many layers."""
        return int(layers * 0.4) if self.config.layer is None else self.config.layer

    @property
    def needs_cache(self) -> bool:
        """True: the last position of a row asks, which in training is one of the answer."""
        return True

    def keys_held(self, visual: int) -> int:
        """As many keys as positions are read."""
        return min(visual, self.config.top_k)

    @property
    def restarts_positions(self) -> bool:
        """Whether positions count anew."""
        return self.config.positions == "restart"

    def prune(self, view: PruneView) -> PruneDecision | None:
        """Before the first layer: the positions that are read. None where they are all."""
        valid, current = view.before.valid, view.current
        if view.layer or bool((valid.sum(-1) <= self.config.top_k).all()):
            return None
        number = self.filter_layer(view.layers)
        probe = view.probe_of(number)
        scores = pooled_scores(probe.query[:, :, -1], probe.key, valid)
        kind = view.before.of(current.kind)
        times, seen = kind == PositionKind.TIME, (kind == PositionKind.VISUAL) & valid
        forced = valid & ~seen & ~times & self.config.text
        count = torch.full((len(valid),), self.config.top_k, device=valid.device)
        last = torch.arange(valid.shape[1], device=valid.device) == valid.shape[1] - 1  # the answer starts from it
        chosen = (
            best_of_rows(scores.masked_fill(last, torch.inf), valid & ~forced & ~(times & self.config.text), count)
            | forced
        )
        if self.config.text:
            chosen |= times & valid & of_kept_frames(chosen & seen, seen, view.before.of(current.frame))
        view.notes[0] = scores
        if current.counts is not None:
            current.counts.prompt_positions += float(valid.sum()) / len(valid) * (number + 1)
        restart = self.restarts_positions
        return PruneDecision(keep=chosen, restart=restart, answer_follows=restart)

    def explain_pass(self, current: LlmPass) -> Explanation | None:
        """How much the prompt's last position asks for every visual token, B P."""
        scores = current.notes_of(self).get(0)
        if scores is None:
            return None
        values = current.on_visual(current.everything().position, scores)
        return Explanation(name="GemFilter: logits of the prompt's last position", values=values)


def of_kept_frames(kept: Tensor, visual: Tensor, frame: Tensor) -> Tensor:
    """bool, B P: whether the next visual token, from each position on, shows a frame of which some token is kept.

    Args:
        kept: bool, B P. The visual tokens that are kept.
        visual: bool, B P. All visual tokens.
        frame: int64, B P. The frame of each visual token; anything at text.
    """
    count = frame.shape[1]
    place = torch.arange(count, device=frame.device).expand(frame.shape)
    following = place.masked_fill(~visual, count).flip(1).cummin(1).values.flip(1)
    frame = frame.masked_fill(~visual, 0)
    frames = torch.zeros(len(frame), int(frame.max()) + 1, dtype=torch.uint8, device=frame.device)
    frames = frames.scatter_reduce(1, frame, (kept & visual).to(torch.uint8), "amax").bool()
    return frames.gather(1, frame.gather(1, following.clamp(max=count - 1))) & (following < count)
