"""TidalDecode: one layer looks at all keys, and the layers behind it read those that it ranked highest (2410.05076).

    layers 0, 1: all keys | 2: all keys, ranks them | 3..8: the top_k of layer 2 | 9: all keys, ranks them | 10..

Each query head has its own keys. The new key is ranked with the others: a layer that does not rank sees it only if it
ranks high. The cache stays whole, and a prompt is read densely.

B rows, N new positions, H query heads, G key heads, K keys, D head width
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmllm.context.choosing import SelectingPolicy, chosen_keys, logits_of, note_refreshes
from mmllm.context.keeping import best_keys
from mmllm.errors import ConfigError
from mmllm.fields import require
from mmllm.llm.values import AttentionView, GatheredKeys
from mmllm.registry import register

FEWEST_LAYERS = 4


@dataclass(frozen=True, kw_only=True)
class TidalConfig:
    """The defaults are those of the released code for 32 layers."""

    top_k: int = 256
    """Keys that each query head reads in a layer that does not rank, and no others."""
    start: int = 2
    """The first layer that ranks; those before it read all keys."""
    correction: int | None = None
    """The second layer that ranks. None for the published place: layer 9 of 32, at the same depth in other LLMs."""

    def __post_init__(self) -> None:
        require(self.top_k >= 1, self, "top_k", "at least 1")
        require(self.start >= 0, self, "start", "0 or more")
        require(self.correction is None or self.correction > self.start, self, "correction", "behind start")


def top_seen(query: Tensor, keys: Tensor, top_k: int, among: Tensor | None = None) -> Tensor:
    """bool, B H N K: the keys with the highest logits, for each query of each head.

    Args:
        query: B H N D, rotated.
        keys: B G K D, rotated.
        top_k: how many; all, where there are fewer.
        among: bool, broadcast to B H N K: keys that may be seen; None for all.
    """
    logits = logits_of(query, keys)
    among = torch.ones_like(logits, dtype=torch.bool) if among is None else among.expand(logits.shape)
    count = torch.full((len(logits),), top_k, device=logits.device)
    return best_keys(logits.flatten(1, 2), among.flatten(1, 2), count).view(logits.shape)


def seen_at(seen: Tensor, position: Tensor, wanted: Tensor) -> Tensor:
    """bool, B H J: whether positions (int64, B 1 J) are among the seen ones (bool, B H K) of others (int64, B 1 K)."""
    length = int(torch.maximum(position.max(), wanted.max())) + 1
    heads = seen.shape[1]
    # filling repeats a position, and is not seen
    whole = seen.new_zeros(len(seen), heads, length, dtype=torch.uint8)
    whole = whole.scatter_reduce(-1, position.expand(-1, heads, -1), seen.to(torch.uint8), "amax")
    return whole.gather(-1, wanted.expand(-1, heads, -1)).bool()


@register("context", "tidal", config=TidalConfig)
class Tidal(SelectingPolicy):
    """TidalDecode: two layers rank all keys, the others read only those that rank highest."""

    def __init__(self, config: TidalConfig) -> None:
        self.config = config

    def check(self, layers: int) -> None:
        """Refuses an LLM that is too shallow.

        Raises:
            ConfigError: naming the layers.
        """
        if layers < FEWEST_LAYERS:
            raise ConfigError(f"context 'tidal' needs an LLM of at least {FEWEST_LAYERS} layers, not {layers}")
        for field, layer in (("start", self.config.start), ("correction", self.config.correction or 0)):
            if layer >= layers:
                raise ConfigError(f"TidalConfig.{field} = {layer}: must be below the LLM's {layers} layers")

    def ranking_layers(self, layers: int) -> tuple[int, ...]:
        """The layers that rank keys, of an LLM with so many; a shallow one has no second."""
        start, correction = self.config.start, self.config.correction
        correction = layers * 9 // 32 if correction is None else correction
        return (start, correction) if correction > start + 1 else (start,)

    def select(self, view: AttentionView) -> GatheredKeys | None:
        """The keys that the last ranking layer has ranked highest; all in a ranking layer, and before."""
        if view.phase != "token" or view.layer < self.config.start:
            return None
        notes = view.current.notes_of(self)
        if view.layer in self.ranking_layers(view.layers):
            dense = bool((view.valid.sum(-1) <= self.config.top_k).all())
            seen = None if dense else top_seen(view.query, view.keys, self.config.top_k, view.valid.unsqueeze(2))
            notes[0] = None if seen is None else (view.position, seen[:, :, 0])
            note_refreshes(view, torch.tensor(not dense))
            return None
        if notes[0] is None:
            return None
        position, seen = notes[0]
        if not torch.equal(position, view.position):  # a stage has removed positions between the layers
            seen = seen_at(seen, position, view.position)
            seen[..., -1] |= ~seen.any(-1)  # a head whose keys are all gone reads the new one
        return chosen_keys(seen, view.valid)
