"""Parallel Prompt Decoding (arXiv 2405.18628): a few learned embeddings guess what comes after the next token. Exact.

The k prompt tokens stand behind every node of a draft; the frozen model's own head reads guesses from them. The next
draft is a tree of these guesses. How many nodes and prompt tokens it has follows from how often guesses were right.

k prompt tokens, B rows, A tokens of an answer, D width
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from einops import repeat
from torch import Tensor, nn

from mmllm.decoding import acceptance
from mmllm.decoding.ahead import AheadConfig, AheadDraft, Places, read_extra
from mmllm.decoding.ahead_drafts import AheadDrafts
from mmllm.decoding.beside_target import BesideTargetConfig, BesideTargetDecoding
from mmllm.decoding.draft import Draft
from mmllm.decoding.sparse_tree import sparse_trees
from mmllm.decoding.trained_draft import TargetRows
from mmllm.decoding.tree import DraftSource, Request
from mmllm.decoding.writing import Written
from mmllm.fields import require
from mmllm.registry import register


@dataclass(frozen=True, kw_only=True)
class PromptTokensConfig(AheadConfig):
    """How many prompt tokens."""


@register("draft", "ppd", config=PromptTokensConfig)
class PromptTokens(AheadDraft):
    """A few embeddings behind each token that make the model guess ahead (Parallel Prompt Decoding)."""

    training_defaults: ClassVar[dict[str, Any]] = {"learning_rate": 0.01, "max_steps": 400, "batch_size": 16}

    def __init__(self, config: PromptTokensConfig, *, model: Any) -> None:
        super().__init__(config, model=model)
        words = model.get_input_embeddings()
        ids = torch.randint(len(words.weight), (config.tokens,), device=words.weight.device)
        self.embeddings = nn.Parameter(words(ids).detach().clone())

    def outputs(self, rows: TargetRows, places: Places) -> Tensor:
        """B A k D: what the target computes of the prompt tokens."""
        batch, answers = places.position.shape
        return read_extra(rows, places, repeat(self.embeddings, "k d -> b a k d", b=batch, a=answers))


@dataclass(frozen=True, kw_only=True)
class PpdConfig(BesideTargetConfig):
    """How large drafts are."""

    limit: int = 40
    """The most nodes and prompt tokens of a draft, without its root and the root's prompt tokens."""
    rule: Literal["exact", "typical"] = "exact"
    """What is accepted: what the target writes, or also what it finds likely enough (another law)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.limit >= 3, self, "limit", "at least two more than the prompt tokens")


@register("decoding", "ppd", config=PpdConfig)
class Ppd(BesideTargetDecoding):
    """Learned prompt tokens guess ahead (Parallel Prompt Decoding): exact."""

    draft_name = "ppd"
    config: PpdConfig

    @property
    def other_law(self) -> str:
        """What is written with the typical rule."""
        return acceptance.TYPICAL_LAW if self.config.rule == "typical" else ""

    def start(self, request: Request) -> DraftSource:
        """Trees of what the prompt tokens guess."""
        draft = self.draft_for(request.model)
        assert isinstance(draft, PromptTokens)
        return AheadDrafts(request, sparse_trees(draft.accuracies, self.config.limit), draft.embeddings)

    def accept(self, draft: Draft, logits: Tensor, text: Written) -> list[int]:
        """The longest path that the target writes; with the typical rule, that it finds likely enough."""
        return (acceptance.typical if self.config.rule == "typical" else acceptance.point)(draft, logits, text)
