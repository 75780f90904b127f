"""LLMCad (arXiv 2309.04255): draft until the drafter is unsure, by a threshold that follows how well it did. Exact.

The best continuation grows token by token, with the next best words beside each of its tokens. Its confidence is the
product of its probabilities; below a threshold alpha drafting stops. If all n tokens of it were right, alpha is halved;
else it is divided by 0.5^((n - right) / n). While the target verifies, the drafter goes on behind its best path; if
that path turns out right, these provisional tokens begin the next draft. Here they are made before the verification.

N nodes, V vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmllm.decoding.draft import Draft
from mmllm.decoding.drafted import DraftedDecoding
from mmllm.decoding.drafter import Drafter, DrafterConfig, DrafterSource
from mmllm.decoding.tree import DraftSource, Request, TreeDecoding
from mmllm.fields import require
from mmllm.registry import register

LEAST, MOST = 1e-6, 0.9
"""Between these the threshold stays."""


@dataclass(frozen=True, kw_only=True)
class LlmCadConfig(DrafterConfig):
    """When drafting stops, and what stands beside the best path."""

    threshold: float = 0.01
    """alpha at the start of a text."""
    siblings: int = 2
    """Words beside each token of the best path."""
    provisional: int = 2
    """Tokens that the drafter goes on behind its best path while the target verifies."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(LEAST <= self.threshold <= MOST, self, "threshold", f"from {LEAST} to {MOST}")
        require(self.siblings >= 0, self, "siblings", "0 or more")
        require(self.provisional >= 0, self, "provisional", "0 or more")


@register("decoding", "llmcad", config=LlmCadConfig)
class LlmCad(DraftedDecoding, TreeDecoding):
    """Drafts until the drafter is unsure, by a threshold that follows how well it did (LLMCad): exact."""

    config: LlmCadConfig

    def start(self, request: Request) -> DraftSource:
        """A source with a threshold of its own."""
        return SureDrafts(self.drafter(request), self.config, request)


def next_threshold(threshold: float, drafted: int, right: int) -> float:
    """alpha after a verification of `drafted` tokens on the best path, of which the first `right` were right."""
    if not drafted:
        return threshold
    changed = threshold * 0.5 if right == drafted else threshold / 0.5 ** ((drafted - right) / drafted)
    return min(MOST, max(LEAST, changed))


class SureDrafts(DrafterSource):
    """Drafts of one text."""

    config: LlmCadConfig

    def __init__(self, drafter: Drafter, config: LlmCadConfig, request: Request) -> None:
        super().__init__(drafter, config, request)
        self.thresholds = [config.threshold]
        self.best: list[int] = []
        self.ahead: list[int] = []
        self.kept, self.discarded = 0, 0

    @property
    def extra(self) -> dict[str, Any]:
        """The trace of the threshold, and what became of provisional tokens."""
        return {"thresholds": self.thresholds, "kept": self.kept, "discarded": self.discarded}

    def propose(self, root: int, room: int) -> Draft:
        """The best path with its siblings, as deep as the drafter is sure and there is room."""
        tokens, parents, words = [root], [-1], list[int]()
        node, confidence, self.best = 0, 1.0, []
        logits = self.drafter.follow(self.request.text.new)
        while len(words) < room:
            law = self.drafter.law(logits, words)
            likely = law.topk(min(1 + self.config.siblings, int((law > 0).sum()))).indices.tolist()
            confidence *= float(law[likely[0]])
            if confidence < self.thresholds[-1]:
                break
            parent, node = node, len(tokens)
            self.best.append(node)
            tokens += likely
            parents += [parent] * len(likely)
            words = [*words, likely[0]]
            if len(words) < room:
                logits = self.drafter.grow(likely[:1], [len(words) - 2])[0]
        self._go_on(words, room)
        return Draft(tokens=torch.tensor(tokens), parents=torch.tensor(parents))

    def _go_on(self, words: list[int], room: int) -> None:
        """Makes provisional tokens behind the best path; the drafter's cache keeps them for the next draft."""
        self.ahead = []
        count = min(self.config.provisional, room - len(words))
        if not words or count <= 0:
            return
        read = len(self.drafter.reader.tokens)
        logits = self.drafter.reader.logits[-1] if read == len(words) else self.drafter.grow(words[-1:], [read - 1])[0]
        for _ in range(count):
            self.ahead.append(int(self.drafter.law(logits, [*words, *self.ahead]).argmax()))
            logits = self.drafter.grow(self.ahead[-1:], [len(words) + len(self.ahead) - 2])[0]

    def observe(self, draft: Draft, logits: Tensor, path: Sequence[int]) -> None:
        """Moves the threshold, and counts which provisional tokens the next draft begins with."""
        right = sum(a == b for a, b in zip(path[1:], self.best, strict=False))
        self.thresholds.append(next_threshold(self.thresholds[-1], len(self.best), right))
        ends_there = self.best and right == len(self.best) and len(path) == len(self.best) + 1
        useful = len(self.ahead) if ends_there and self.ahead[:1] == [self.request.text.last] else 0
        self.kept += useful
        self.discarded += len(self.ahead) - useful
