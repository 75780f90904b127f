"""LongSpec's draft (arXiv 2502.17421): one layer with a window of its own keys, and the target's last layer.

    x = embedding of a token
    x += self attention (norm x)     to the last W positions and the branch above it
    x += cross attention (norm x)    to the keys and values of the target's last layer, as they are in its cache
    x += MLP (norm x)                the target's LM head reads x; there is no last norm

The layer's own state is W positions, however long the context is. The target's keys end before the token whose follower
is guessed: in training query i sees target keys up to i - r, with r drawn from 1 .. `latest`.

B rows, P positions, N queries, D width, H heads, G groups of keys, d head width, W window
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, silu

from mmllm.decoding.small_attention import attended, merged, rotated
from mmllm.decoding.trained_draft import TargetRows, TrainedDraft, text_decoder
from mmllm.errors import ConfigError
from mmllm.fields import require
from mmllm.llm.head import lm_logits
from mmllm.registry import register

SHORT_TEXT, MOST_OFFSET, FREE = 1200, 30_000, 1000
"""Texts up to this length get other positions in training, moved by at most this, and this far from the LLM's end."""


@dataclass(frozen=True, kw_only=True)
class LongSpecDraftConfig:
    """The sizes of the layer, and what it sees in training."""

    window: int = 512
    """W: positions before a token that its self attention sees."""
    cross: bool = True
    """Whether the layer reads the target's keys and values."""
    latest: int = 4
    """In training, the target's keys are missing for so many positions at most."""
    anchors: bool = False
    """Train short texts at positions of long ones: 0 to 4 tokens in front keep theirs, others move by an offset."""

    def __post_init__(self) -> None:
        for name in ("window", "latest"):
            require(getattr(self, name) >= 1, self, name, "at least 1")


class Heads(nn.Module):
    """Projections of an attention; keys and values only where they are made of its own input."""

    def __init__(self, width: int, heads: int, groups: int, head_width: int, *, own_keys: bool) -> None:
        super().__init__()
        self.head_width = head_width
        self.q_proj = nn.Linear(width, heads * head_width)
        if own_keys:
            self.k_proj, self.v_proj = (nn.Linear(width, groups * head_width) for _ in range(2))
        self.o_proj = nn.Linear(heads * head_width, width, bias=False)

    def split(self, projected: Tensor) -> Tensor:
        """B H N d of B N (H d)."""
        return rearrange(projected, "b n (h d) -> b h n d", d=self.head_width)

    def keys_and_values(self, states: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """B G N d each, of normed states B N D at positions B N; keys are rotated."""
        return rotated(self.split(self.k_proj(states)), positions), self.split(self.v_proj(states))

    def queries(self, states: Tensor, positions: Tensor, frequencies: Tensor | None = None) -> Tensor:
        """B H N d, rotated."""
        return rotated(self.split(self.q_proj(states)), positions, frequencies)

    def out(self, context: Tensor) -> Tensor:
        """B N D of B H N d."""
        return self.o_proj(rearrange(context, "b h n d -> b n (h d)"))


class GatedMlp(nn.Module):
    """Llama's MLP."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        """... D -> ... D."""
        return self.down_proj(silu(self.gate_proj(states)) * self.up_proj(states))


@register("draft", "longspec", config=LongSpecDraftConfig)
class LongSpecDraft(TrainedDraft):
    """One layer with a short memory of its own, which reads the cache of the target's last layer (LongSpec)."""

    training_defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 2e-3}

    def __init__(self, config: LongSpecDraftConfig, *, model: Any) -> None:
        super().__init__()
        self.config = config
        text = model.config.get_text_config()
        width, heads, groups = text.hidden_size, text.num_attention_heads, text.num_key_value_heads
        head_width = getattr(text, "head_dim", None) or width // heads
        self.input_layernorm = nn.RMSNorm(width, eps=1e-6)
        self.self_attn = Heads(width, heads, groups, head_width, own_keys=True)
        self.post_self_attention_layernorm = nn.RMSNorm(width, eps=1e-6)
        self.cross_attn = Heads(width, heads, groups, head_width, own_keys=False)
        self.post_cross_attention_layernorm = nn.RMSNorm(width, eps=1e-6)
        self.mlp = GatedMlp(width, text.intermediate_size)

    def check(self, model: Any) -> None:
        """Checks that the target's keys can be read."""
        if self.config.cross and 2 * len(key_frequencies(model)) != self.cross_attn.head_width:
            raise ConfigError("longspec: the target rotates only a part of each key, which its draft cannot follow")

    def forward(
        self,
        states: Tensor,
        positions: Tensor,
        own: list[tuple[Tensor, Tensor, Tensor]],
        target: tuple[Tensor, Tensor, Tensor],
        cross_positions: Tensor,
        frequencies: Tensor,
    ) -> Tensor:
        """B N D: what the LM head reads behind tokens.

        Args:
            states: B N D. Embeddings of the tokens.
            positions: int64, B N, for the self attention.
            own: one set or two of keys and values (B G M d each) and which of them each query sees (bool, B N M).
            target: the same of the target's last layer.
            cross_positions: int64, B N. Positions of the tokens as the target has them.
            frequencies: d/2, with which the target's keys are rotated.
        """
        queries = self.self_attn.queries(self.input_layernorm(states), positions)
        parts = [attended(queries, *part) for part in own]
        states = states + self.self_attn.out(parts[0][0] if len(parts) == 1 else merged(*parts))
        if self.config.cross:
            normed = self.post_self_attention_layernorm(states)
            queries = self.cross_attn.queries(normed, cross_positions, frequencies)
            states = states + self.cross_attn.out(attended(queries, *target)[0])
        return states + self.mlp(self.post_cross_attention_layernorm(states))

    def loss(self, rows: TargetRows) -> Tensor:
        """Cross-entropy of the next token, wherever an answer goes on."""
        valid, place = rows.mask.bool(), torch.arange(rows.mask.shape[1], device=rows.mask.device)
        if self.config.anchors and len(place) <= SHORT_TEXT:
            rows = replace(rows, positions=moved_positions(rows.positions, *self._anchors(rows)))
        behind = place.unsqueeze(1) - place.unsqueeze(0)  # P P: how far a key stands behind a query
        causal = valid.unsqueeze(1) & (behind >= 0)
        missing = int(torch.randint(1, self.config.latest + 1, ()))
        layer = rows.cache.layers[-1]
        keys, values = self.self_attn.keys_and_values(self.input_layernorm(rows.embeddings), rows.positions)
        states = self(
            rows.embeddings,
            rows.positions,
            [(keys, values, causal & (behind <= self.config.window))],
            (layer.keys, layer.values, causal & (behind >= missing)),
            rows.positions,
            key_frequencies(rows.model),
        )
        return cross_entropy(lm_logits(rows.model, states[rows.answered]), rows.following[rows.answered])

    def _anchors(self, rows: TargetRows) -> tuple[int, int]:
        """How many of the first tokens stay, and by how much the others move."""
        most = getattr(rows.model.config.get_text_config(), "max_position_embeddings", None) or MOST_OFFSET + FREE
        room = max(0, min(MOST_OFFSET, most - FREE) - rows.mask.shape[1])
        return int(torch.randint(0, 5, ())), int(torch.randint(0, room + 1, ()))


def moved_positions(positions: Tensor, anchors: int, offset: int) -> Tensor:
    """int64, B P: positions of which the first `anchors` stay, and the others are moved by an offset."""
    return torch.where(positions < anchors, positions, positions + offset)


def key_frequencies(model: Any) -> Tensor:
    """d/2: the frequencies with which the keys of a target's last layer are rotated.

    Raises:
        ConfigError: if it has no rotary positions.
    """
    decoder, text = text_decoder(model), model.config.get_text_config()
    kinds = getattr(text, "layer_types", None)
    rotary = getattr(decoder, "rotary_emb", None)
    for name in ("inv_freq", *([f"{kinds[-1]}_inv_freq"] if kinds else [])):
        if isinstance(frequencies := getattr(rotary, name, None), Tensor):
            return frequencies
    raise ConfigError("longspec: the target has no rotary positions, with which its draft asks for keys")
