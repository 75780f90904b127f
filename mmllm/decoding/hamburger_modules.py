"""The two modules around an LLM of HAMburger: one merges a group of tokens into one row, one takes a row apart again.

Weights have the names of the released code.

G groups, S tokens of a group at most, F features of a step, D width, H heads
"""

from __future__ import annotations

from typing import Any

import torch
from einops import einsum, rearrange, repeat
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from mmllm.errors import ConfigError


class AttentionMerger(nn.Module):
    """One row for a group: its mean attends to its tokens, which know their place in the group.

    Args:
        width: D.
        heads: H.
        most: S.
    """

    def __init__(self, width: int, heads: int, most: int) -> None:
        super().__init__()
        if width % heads or width % 2:
            raise ConfigError(f"heads = {heads}: must divide the width {width}, which must be even")
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width + width // 2, width)
        self.v_proj = nn.Linear(width + width // 2, width)
        self.pos = nn.Parameter(nn.init.xavier_normal_(torch.empty(most, width // 2)))

    def forward(self, mean: Tensor, tokens: Tensor, valid: Tensor) -> Tensor:
        """G D, from means (G D), tokens (G S D) and which of them there are (bool, G S)."""
        groups, count, _ = tokens.shape
        placed = torch.cat([tokens, repeat(self.pos[:count], "s e -> g s e", g=groups)], dim=-1)
        query = rearrange(self.q_proj(mean), "g (h d) -> g h d", h=self.heads)
        keys, values = (
            rearrange(project(placed), "g s (h d) -> g h s d", h=self.heads) for project in (self.k_proj, self.v_proj)
        )
        scores = einsum(query, keys, "g h d, g h s d -> g h s") / query.shape[-1] ** 0.5
        attention = scores.masked_fill(~valid[:, None], float("-inf")).softmax(-1)
        return rearrange(einsum(attention, values, "g h s, g h s d -> g h d"), "g h d -> g (h d)")


class CompositionalEmbedder(nn.Module):
    """Groups of tokens as one embedding each: the mean and what the attention adds. One token keeps its own.

    Args: see `AttentionMerger`.
    """

    def __init__(self, width: int, heads: int = 64, most: int = 4) -> None:
        super().__init__()
        self.merger = AttentionMerger(width, heads, most)
        self.out_proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor, sizes: Tensor) -> Tensor:
        """G D: the merged embeddings.

        Args:
            tokens: G S D, embeddings; those behind a group's size are not read.
            sizes: int64, G. From 1 to S.
        """
        valid = torch.arange(tokens.shape[1], device=tokens.device) < sizes[:, None]
        tokens = tokens.masked_fill(~valid[..., None], 0.0)
        mean = tokens.sum(dim=1) / sizes[:, None]
        merged = mean + self.out_proj(self.merger(mean, tokens, valid))
        return torch.where(sizes[:, None] == 1, tokens[:, 0], merged)


def group_positions(prompt: int, sizes: list[int], *, released: bool = False) -> list[int]:
    """The position of each group behind a prompt: that of its last token.

    Args:
        prompt: positions of the prompt.
        sizes: of the groups, in order.
        released: as the released code counts while it writes: one more, which differs from its own training.
    """
    places, last = [], prompt - 1 + released
    for size in sizes:
        last += size
        places.append(last)
    return places


class MicroDecoder(nn.Module):
    """Takes a step of the LLM apart into tokens: a few causal layers over its features and the tokens made so far.

    Args:
        config: of a Llama, for the layers.
        layers: how many.
    """

    def __init__(self, config: LlamaConfig, layers: int = 4) -> None:
        super().__init__()
        self.decoders = nn.ModuleList(LlamaDecoderLayer(config, layer_idx=number) for number in range(layers))
        width = config.hidden_size
        self.stop_head = nn.Sequential(
            nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1)
        )
        self.rotary_emb = LlamaRotaryEmbedding(config=config)

    def forward(self, features: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """What the LM head reads for each token of a step (G S+1 D), and the logits of stopping behind it (G S+1).

        The first token is read from the last feature itself, each later one from the row of the token before it.

        Args:
            features: G F D, hidden states of some layers; the last one behind the final norm.
            tokens: G S D, embeddings of the step's tokens.
        """
        rows = torch.cat([features, tokens], dim=1)
        count = rows.shape[1]
        lowest = torch.finfo(rows.dtype).min
        mask = torch.full((1, 1, count, count), lowest, dtype=rows.dtype, device=rows.device).triu(1)
        place = torch.arange(count, device=rows.device)[None]
        rotation = self.rotary_emb(rows, place)
        for layer in self.decoders:
            rows = layer(rows, attention_mask=mask, position_ids=place, position_embeddings=rotation)
        outputs = torch.cat([features[:, -1:], rows[:, features.shape[1] :]], dim=1)
        return outputs, self.stop_head(outputs)[..., 0]


def micro_config(text: Any) -> LlamaConfig:
    """The configuration of the layers for an LLM's text configuration."""
    heads = text.num_attention_heads
    config = LlamaConfig(
        hidden_size=text.hidden_size,
        intermediate_size=text.intermediate_size,
        num_attention_heads=heads,
        num_key_value_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        max_position_embeddings=64,
    )
    config._attn_implementation = "sdpa"
    return config
