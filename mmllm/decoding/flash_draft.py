"""FLASH's draft (arXiv 2505.12728): one small layer guesses the target's next k hidden states; its LM head reads them.

    prompt   before the image     image                            text
    input    hidden state alone   C = softmax(A X^T) X, m vectors  fc([embedding; hidden state one position before])

A text position holds the token that is known there and what the target computed before it read that token. So the layer
runs on what the target has left behind, and one pass guesses the hidden states at this and the next k - 1 positions.

The release has no residual and no norm, and each query head attends to every one of the G groups of keys, whose results
are summed; usual grouped heads share one group.

B rows, P positions, M = m + P inputs of the layer, D width, H heads, G groups of keys, d head width, k hidden states
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad, smooth_l1_loss

from mmllm.decoding.small_attention import attended, rotated
from mmllm.decoding.trained_draft import TargetRows, TrainedDraft
from mmllm.errors import ConfigError
from mmllm.fields import require
from mmllm.llm.head import lm_logits
from mmllm.registry import register


@dataclass(frozen=True, kw_only=True)
class FlashDraftConfig:
    """The sizes of the layer and its loss; the paper has ahead=5, queries=64, heads=32, groups=4, token_weight=0.1."""

    ahead: int = 3
    """k: hidden states that one pass guesses."""
    queries: int = 16
    """m: vectors in place of the prompt's visual tokens."""
    heads: int | None = None
    """H; as many as the LLM has if None."""
    groups: int | None = None
    """G; as many as the LLM has groups of keys if None."""
    token_weight: float = 1.0
    """Weight of the cross-entropy with the target's law, beside the distance of hidden states."""
    noise: float = 0.2
    """Width of the uniform noise on hidden states in training."""
    released: bool = False
    """The layer as the released code has it."""

    def __post_init__(self) -> None:
        for name in ("ahead", "queries"):
            require(getattr(self, name) >= 1, self, name, "at least 1")
        for name in ("heads", "groups"):
            require(getattr(self, name) is None or getattr(self, name) >= 1, self, name, "at least 1")
        for name in ("token_weight", "noise"):
            require(getattr(self, name) >= 0, self, name, "0 or more")


class Inputs(NamedTuple):
    """The inputs of the layer."""

    states: Tensor
    """B M D."""
    positions: Tensor
    """int64, B M. Numbers of the inputs in the order in which they follow each other."""
    valid: Tensor
    """bool, B M."""


@register("draft", "flash", config=FlashDraftConfig)
class FlashDraft(TrainedDraft):
    """Guesses the target's next hidden states from its last ones, with a compressed video (FLASH)."""

    training_defaults: ClassVar[Mapping[str, Any]] = {"max_grad_norm": 0.5}

    def __init__(self, config: FlashDraftConfig, *, model: Any) -> None:
        super().__init__()
        self.config = config
        text = model.config.get_text_config()
        width = text.hidden_size
        self.heads = config.heads or text.num_attention_heads
        self.groups = config.groups or (text.num_key_value_heads if config.heads is None else 1)
        if width % (2 * self.heads) or self.heads % self.groups:
            raise ConfigError(
                f"heads = {self.heads}, groups = {self.groups}: the width {width} must be divisible by twice the "
                "heads, and the heads by the groups"
            )
        self.head_width = width // self.heads
        self.query = nn.Parameter(torch.randn(config.queries, width) / math.sqrt(width))
        self.fc = nn.Linear(2 * width, width)
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, self.groups * self.head_width)
        self.v_proj = nn.Linear(width, self.groups * self.head_width)
        self.o_proj = nn.Linear(width, width)
        self.ar_proj = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, config.ahead * width))
        self.attention_norm = nn.Identity() if config.released else nn.RMSNorm(width)
        self.mlp_norm = nn.Identity() if config.released else nn.RMSNorm(width)

    def fused(self, embeddings: Tensor, hidden: Tensor) -> Tensor:
        """... D: the inputs of text positions, from embeddings and hidden states (... D each)."""
        return self.fc(torch.cat([embeddings, hidden], dim=-1))

    def inputs(self, embeddings: Tensor, hidden: Tensor, visual: Tensor, mask: Tensor) -> Inputs:
        """The inputs of whole rows: first the m vectors in place of visual tokens, then one for each position.

        Args:
            embeddings, hidden: B P D. What the target reads, and its last hidden states.
            visual: bool, B P.
            mask: bool, B P. False at padding.
        """
        visual = visual & mask
        has_visual = visual.any(1, keepdim=True)
        first = mask & (mask.long().cumsum(1) == 1)
        before = torch.where(has_visual, mask & (visual.long().cumsum(1) == 0), first)
        text = mask & ~visual & ~before
        previous = pad(hidden[:, :-1], (0, 0, 1, 0))
        states = torch.where(before.unsqueeze(-1), hidden, self.fused(embeddings, previous))
        in_front, count = before.sum(1, keepdim=True), self.config.queries
        number = torch.arange(count, device=mask.device).expand(len(mask), -1)
        behind = in_front + count * has_visual + text.long().cumsum(1) - 1
        return Inputs(
            states=torch.cat([compressed(self.query, hidden, visual), states], dim=1),
            positions=torch.cat([in_front + number, torch.where(before, before.long().cumsum(1) - 1, behind)], dim=1),
            valid=torch.cat([has_visual.expand(-1, count), before | text], dim=1),
        )

    def keys_and_values(self, states: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """B G M d each, of inputs B M D at positions B M; keys are rotated."""
        normed = self.attention_norm(states)
        keys, values = (
            rearrange(part(normed), "b m (g d) -> b g m d", g=self.groups) for part in (self.k_proj, self.v_proj)
        )
        return rotated(keys, positions), values

    def guesses(self, states: Tensor, positions: Tensor, keys: Tensor, values: Tensor, seen: Tensor) -> Tensor:
        """B Q k D: hidden states at the positions of Q inputs, and at the next k - 1.

        Args:
            states: B Q D.
            positions: int64, B Q.
            keys, values: B G M d.
            seen: bool, B Q M.
        """
        queries = rearrange(self.q_proj(self.attention_norm(states)), "b q (h d) -> b h q d", h=self.heads)
        queries = rotated(queries, positions)
        groups = self.groups if self.config.released else 1
        parts = zip(keys.chunk(groups, dim=1), values.chunk(groups, dim=1), strict=True)
        context = torch.stack([attended(queries, key, value, seen)[0] for key, value in parts]).sum(0)
        mixed = self.o_proj(rearrange(context, "b h q d -> b q (h d)"))
        mixed = mixed if self.config.released else states + mixed
        ahead = rearrange(self.ar_proj(self.mlp_norm(mixed)), "b q (k d) -> b q k d", k=self.config.ahead)
        return ahead if self.config.released else mixed.unsqueeze(2) + ahead

    def loss(self, rows: TargetRows) -> Tensor:
        """Distance from the target's hidden states, and cross-entropy with its law, wherever an answer goes on."""
        hidden = rows.hidden
        noisy = hidden + (torch.rand_like(hidden) - 0.5) * self.config.noise
        inputs = self.inputs(rows.embeddings, noisy, rows.visual, rows.mask.bool())
        keys, values = self.keys_and_values(inputs.states, inputs.positions)
        count = self.config.queries
        states, positions = inputs.states[:, count:], inputs.positions[:, count:]
        seen = inputs.valid.unsqueeze(1) & (inputs.positions.unsqueeze(1) <= positions.unsqueeze(2))
        guesses = rearranged(self.guesses(states, positions, keys, values, seen))  # B kP D
        guesses = rearrange(guesses, "b (k p) d -> b k p d", k=self.config.ahead)
        wanted = torch.stack(
            [rows.answered & pad(rows.answered, (offset, 0))[:, : rows.answered.shape[1]]
             for offset in range(self.config.ahead)], dim=1
        )  # fmt: skip
        guessed, true = guesses[wanted], hidden.unsqueeze(1).expand_as(guesses)[wanted]
        with torch.no_grad():
            law = lm_logits(rows.model, true).softmax(-1)
        token = cross_entropy(lm_logits(rows.model, guessed), law)
        return smooth_l1_loss(guessed, true) + self.config.token_weight * token


def compressed(query: Tensor, visual: Tensor, mask: Tensor | None = None) -> Tensor:
    """C = softmax(A X^T) X, B m D, without scaling.

    Args:
        query: A, m D.
        visual: X, B N D.
        mask: bool, B N. True at what is compressed; everything if None. Rows of False give zeros.
    """
    scores = query @ visual.transpose(1, 2)
    if mask is not None:
        scores = scores.masked_fill(~mask.unsqueeze(1), torch.finfo(scores.dtype).min)
        return (scores.softmax(-1) * mask.unsqueeze(1)) @ visual
    return scores.softmax(-1) @ visual


def rearranged(guesses: Tensor) -> Tensor:
    """B kP D: block i of guesses (B P k D) moved i positions to the right, so that each stands where it is true.

    The first i places of a block are zero.
    """
    blocks = [pad(guesses[:, : guesses.shape[1] - i, i], (0, 0, i, 0)) for i in range(guesses.shape[2])]
    return torch.cat(blocks, dim=1)
