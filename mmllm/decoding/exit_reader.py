"""A decoder that may stop after some of its layers, and go on with deeper ones later. Nothing is computed twice.

    segment 0   layers up to the first exit     every token
    segment 1   layers up to the second exit    tokens that wait for it, once a later token goes that deep

The hidden states behind a segment wait there until the next segment is asked for. So keys of deeper layers may end
before those of earlier ones, and each is a gapless beginning of the text.

L positions of the text, W waiting positions, D width, V vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from mmllm.decoding.masks import tree_mask
from mmllm.decoding.trained_draft import text_decoder
from mmllm.errors import ConfigError
from mmllm.llm.cache import CACHE
from mmllm.llm.head import lm_logits


class ExitReader:
    """Reads embeddings, and gives logits at exits.

    Args:
        llm: a Llama or a decoder whose layers take the same arguments.
        exits: rising numbers of layers.
        embeddings: 1 L D, of the prompt.
        mask: 1 L. 0 at padding.

    Raises:
        ConfigError: if the LLM has fewer layers, or layers that cannot be run one by one.
    """

    def __init__(self, llm: Any, exits: Sequence[int], embeddings: Tensor, mask: Tensor) -> None:
        self.llm, self.decoder = llm, text_decoder(llm)
        layers = len(self.decoder.layers)
        if exits[-1] > layers:
            raise ConfigError(f"exits = {'+'.join(map(str, exits))}: the draft has {layers} layers")
        self.bounds = list(zip((0, *exits), exits, strict=False))
        self.attended = mask[0].bool()
        self.cache = DynamicCache()
        self.waiting = [embeddings, *(embeddings[:, :0] for _ in exits)]
        """1 W D behind each segment, the embeddings first: what the next one has not run."""
        self.done = [0] * len(exits)
        self.passes, self.positions, self.pairs = 0, 0, 0

    @property
    def length(self) -> int:
        """L."""
        return len(self.attended)

    def append(self, embeddings: Tensor) -> None:
        """Adds tokens (1 W D) to the text."""
        self.waiting[0] = torch.cat([self.waiting[0], embeddings], dim=1)
        self.attended = torch.cat([self.attended, self.attended.new_ones(embeddings.shape[1])])

    def logits(self, segment: int) -> Tensor:
        """V: the law behind the last token at an exit. Segments are asked for in order, the first one first."""
        hidden = self._run(segment)[:, -1:]
        return lm_logits(self.llm, self.decoder.norm(hidden))[0, 0]

    def cut(self, length: int) -> None:
        """Takes back the text behind the first `length` positions."""
        before = self.length
        for segment, (first, last) in enumerate(self.bounds):
            stays = max(0, min(before, length) - self.done[segment])
            self.waiting[segment] = self.waiting[segment][:, :stays]
            before, self.done[segment] = self.done[segment], min(self.done[segment], length)
            for layer in self.cache.layers[first:last]:
                layer.keys, layer.values = layer.keys[:, :, :length], layer.values[:, :, :length]
        self.waiting[-1] = self.waiting[-1][:, :0]
        self.attended = self.attended[:length]

    def _run(self, segment: int) -> Tensor:
        """1 W D: what waits for a segment, behind its layers."""
        hidden, start = self.waiting[segment], self.done[segment]
        count = hidden.shape[1]
        place = torch.arange(count, device=hidden.device)
        causal = torch.ones(count, count, dtype=torch.bool, device=hidden.device).tril()
        mask = tree_mask(self.attended[:start], causal & self.attended[start : start + count], place, hidden.dtype)
        positions = (self.attended.long().cumsum(0) - 1).clamp(min=0)[None, start : start + count]
        angles = self.decoder.rotary_emb(hidden, positions)
        first, last = self.bounds[segment]
        for layer in self.decoder.layers[first:last]:
            hidden = layer(
                hidden,
                attention_mask=mask,
                position_ids=positions,
                position_embeddings=angles,
                use_cache=True,
                **{CACHE: self.cache},
            )
        self.waiting[segment] = hidden[:, :0]
        self.waiting[segment + 1] = torch.cat([self.waiting[segment + 1], hidden], dim=1)
        self.done[segment] = start + count
        if start:
            self.passes, self.positions = self.passes + (segment == 0), self.positions + count * (segment == 0)
            self.pairs += count * (last - first)
        return hidden
