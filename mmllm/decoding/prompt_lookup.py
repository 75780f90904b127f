"""Prompt lookup of transformers: what followed the last words earlier in the text is drafted. Exact, untrained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mmllm.decoding.assisting import AssistedLoop
from mmllm.fields import require
from mmllm.registry import register


@dataclass(frozen=True, kw_only=True)
class PromptLookupConfig:
    """How much is copied from the text."""

    tokens: int = 10
    """The most tokens of a draft."""
    ngram: int = 2
    """The longest run of last tokens that is looked up."""

    def __post_init__(self) -> None:
        require(self.tokens >= 1, self, "tokens", "at least 1")
        require(self.ngram >= 1, self, "ngram", "at least 1")


@register("decoding", "prompt-lookup", config=PromptLookupConfig)
class PromptLookup(AssistedLoop):
    """Drafts what followed the last words earlier in the text (prompt lookup of transformers): exact."""

    def __init__(self, config: PromptLookupConfig) -> None:
        self.config = config

    def settings(self, model: Any, input_ids: Tensor) -> tuple[dict[str, Any], Any]:
        """The length of drafts and of what is looked up; no assistant."""
        lookup = {"prompt_lookup_num_tokens": self.config.tokens, "max_matching_ngram_size": self.config.ngram}
        return lookup, None
