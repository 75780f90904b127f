"""BLIP-2's Q-Former: a BERT whose queries look at visual tokens in every second layer, beside text if there is some.

    queries ─┐                  ┌ queries: attention to visual tokens (some layers) ─ own MLP ─┐
             ├ self-attention ──┤                                                            ├─ next layer
    text ────┘                  └ text: BERT's MLP ──────────────────────────────────────────┘

Its weights have BERT's names, so that published ones load as they are.

F frames, K queries, Q ids of a text, L visual tokens of a frame, C width, D width of the visual tokens, H heads
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from mmllm.errors import InputError


@dataclass(frozen=True, kw_only=True)
class QFormerSizes:
    """Sizes; the defaults are BERT-base's."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    vocabulary: int = 30522
    positions: int = 512
    """The longest text, in ids."""
    cross_every: int = 2
    """Queries attend to visual tokens in every so many layers, from the first on."""


class QFormer(nn.Module):
    """Queries that have read visual tokens and a text.

    Args:
        sizes: its sizes.
        visual_width: D.
    """

    def __init__(self, sizes: QFormerSizes, visual_width: int) -> None:
        super().__init__()
        self.embeddings = _Embeddings(sizes)
        crossing = [i % sizes.cross_every == 0 for i in range(sizes.layers)]
        self.encoder: Any = nn.Module()
        self.encoder.layer = nn.ModuleList(_Layer(sizes, visual_width if crosses else None) for crosses in crossing)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(
        self, queries: Tensor, visual: Tensor, visual_mask: Tensor | None = None, text: Tensor | None = None
    ) -> Tensor:
        """F K C: the queries after all layers.

        Args:
            queries: F K C.
            visual: F L D.
            visual_mask: bool, F L. False at tokens that are not seen.
            text: int64, Q. Ids of a text that all frames share.

        Raises:
            InputError: if the text is too long, or has an id that is not in the vocabulary.
        """
        count = queries.shape[1]
        hidden = self.embeddings(queries, text)
        for layer in self.encoder.layer:
            hidden = layer(hidden, count, visual, visual_mask)
        return hidden[:, :count]


class _Embeddings(nn.Module):
    def __init__(self, sizes: QFormerSizes) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(sizes.vocabulary, sizes.width)
        self.position_embeddings = nn.Embedding(sizes.positions, sizes.width)
        self.LayerNorm = nn.LayerNorm(sizes.width, eps=1e-12)

    def forward(self, queries: Tensor, text: Tensor | None) -> Tensor:
        """F K+Q C: the queries, which have no position, then the text."""
        if text is None or not len(text):
            return self.LayerNorm(queries)
        rows, positions = self.word_embeddings.num_embeddings, self.position_embeddings.num_embeddings
        if len(text) > positions:
            raise InputError(f"the Q-Former reads texts of at most {positions} ids, not {len(text)}")
        if int(text.max()) >= rows or int(text.min()) < 0:
            raise InputError(f"the Q-Former knows ids from 0 to {rows - 1}; the text has {int(text.max())}")
        words = self.word_embeddings(text) + self.position_embeddings.weight[: len(text)]
        return self.LayerNorm(torch.cat([queries, words.expand(len(queries), -1, -1)], dim=1))


class _Layer(nn.Module):
    """Self-attention, attention to visual tokens in some layers, and an MLP of their own for queries and for text."""

    def __init__(self, sizes: QFormerSizes, visual_width: int | None) -> None:
        super().__init__()
        self.attention = _Attention(sizes, sizes.width)
        self.crossattention = None if visual_width is None else _Attention(sizes, visual_width)
        self.intermediate, self.output = _Dense(sizes.width, sizes.mlp_width), _Output(sizes.mlp_width, sizes.width)
        self.intermediate_query = _Dense(sizes.width, sizes.mlp_width)
        self.output_query = _Output(sizes.mlp_width, sizes.width)

    def forward(self, hidden: Tensor, queries: int, visual: Tensor, visual_mask: Tensor | None) -> Tensor:
        hidden = self.attention(hidden, hidden)
        asking, text = hidden[:, :queries], hidden[:, queries:]
        if self.crossattention is not None:
            asking = self.crossattention(asking, visual, visual_mask)
        asking = self.output_query(nn.functional.gelu(self.intermediate_query(asking)), asking)
        if not text.shape[1]:
            return asking
        return torch.cat([asking, self.output(nn.functional.gelu(self.intermediate(text)), text)], dim=1)


class _Attention(nn.Module):
    """Attention, a linear map, and the norm behind the residual connection."""

    def __init__(self, sizes: QFormerSizes, key_width: int) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.self: Any = nn.Module()
        self.self.query = nn.Linear(sizes.width, sizes.width)
        self.self.key, self.self.value = (nn.Linear(key_width, sizes.width) for _ in range(2))
        self.output = _Output(sizes.width, sizes.width)

    def forward(self, hidden: Tensor, seen: Tensor, mask: Tensor | None = None) -> Tensor:
        queries, keys, values = (
            rearrange(part, "f n (h c) -> f h n c", h=self.heads)
            for part in (self.self.query(hidden), self.self.key(seen), self.self.value(seen))
        )
        allowed = None if mask is None else rearrange(mask, "f n -> f 1 1 n")
        mixed = nn.functional.scaled_dot_product_attention(queries, keys, values, allowed)
        return self.output(rearrange(mixed, "f h n c -> f n (h c)"), hidden)


class _Dense(nn.Module):
    """A linear map under BERT's name."""

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(in_width, out_width)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.dense(hidden)


class _Output(_Dense):
    """A linear map, added to what was there before, and a norm."""

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__(in_width, out_width)
        self.LayerNorm = nn.LayerNorm(out_width, eps=1e-12)

    def forward(self, hidden: Tensor, before: Tensor) -> Tensor:  # type: ignore[override]
        return self.LayerNorm(self.dense(hidden) + before)
