"""FastDraft (arXiv 2411.11055): a small model that was trained to say what its target says drafts a chain. Exact.

`mmllm train-draft fastdraft` trains it: first on the answers of the data, then on those of the target. Its folder is
also one for `draft=` of all methods with a draft model.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmllm.decoding.drafted import DraftedDecoding
from mmllm.decoding.drafter import OWN, DrafterConfig
from mmllm.decoding.spectr import Chains, SpecTrConfig
from mmllm.decoding.tree import DraftSource, Request, TreeDecoding
from mmllm.fields import require
from mmllm.registry import register


@dataclass(frozen=True, kw_only=True)
class FastDraftConfig(DrafterConfig):
    """Which model drafts, and how much."""

    draft: str
    """Folder of the draft, as `mmllm train-draft fastdraft` wrote it."""
    tokens: int = 4
    """Tokens of a draft."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.draft != OWN, self, "draft", "the folder of a trained draft")
        require(self.tokens >= 1, self, "tokens", "at least 1")


@register("decoding", "fastdraft", config=FastDraftConfig)
class FastDraft(DraftedDecoding, TreeDecoding):
    """A chain of a small model that was trained on the target's answers (FastDraft): exact."""

    config: FastDraftConfig

    def start(self, request: Request) -> DraftSource:
        """A source that draws one chain."""
        chain = SpecTrConfig(draft=self.config.draft, candidates=1, tokens=self.config.tokens)
        return Chains(self.drafter(request), chain, request)
