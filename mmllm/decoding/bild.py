"""BiLD, Big Little Decoder (arXiv 2302.07863): a small model writes, a large one looks over it. Another law.

The small model decodes greedily. Below a confidence (`fallback`) or after ten tokens the large one takes over: it reads
all of them in one pass and adds its own next token. Where a token of the small one is too surprising for it
(-log p above `rollback`), the text is cut there, and the large model's token stands instead.

N tokens of the small model, V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mmllm.decoding.bild_released import ReleasedBild
from mmllm.decoding.counts import DecodingCounts
from mmllm.decoding.draft import Draft
from mmllm.decoding.drafted import DraftedDecoding
from mmllm.decoding.drafter import Drafter, DrafterConfig, DrafterSource
from mmllm.decoding.reading import CachedReader
from mmllm.decoding.tree import DraftSource, Request, TreeDecoding
from mmllm.decoding.writing import Written
from mmllm.errors import ConfigError
from mmllm.fields import require
from mmllm.registry import register


@dataclass(frozen=True, kw_only=True)
class BildConfig(DrafterConfig):
    """When the large model takes over, and what it takes back."""

    fallback: float = 0.6
    """The large model takes over where the small one's best probability is below this."""
    rollback: float = 5.0
    """It takes back tokens whose -log p is above this and that it would not choose itself; 0 gives its greedy text."""
    most: int = 10
    """Tokens of the small model after which the large one takes over."""
    released: bool = False
    """Run as the released code does; see `mmllm.decoding.bild_released`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.fallback <= 1, self, "fallback", "from 0 to 1")
        require(self.rollback >= 0, self, "rollback", "0 or more nats")
        require(self.most >= 1, self, "most", "at least 1")


@register("decoding", "bild", config=BildConfig)
class Bild(DraftedDecoding, TreeDecoding):
    """A small model writes and the large one takes back what surprises it (BiLD): another law."""

    config: BildConfig
    other_law = "tokens of a small model that do not surprise this one too much (BiLD)"

    def write(self, request: Request, target: CachedReader, logits: Tensor) -> Callable[[float], DecodingCounts]:
        """Rounds of both models.

        Raises:
            ConfigError: for sampled text: both models decode greedily.
        """
        if request.text.sample:
            raise ConfigError("decoding bild is greedy: it cannot sample (do_sample, temperature)")
        if self.config.released:
            return ReleasedBild(self.config, request, self.drafter(request), target).run(logits)
        return super().write(request, target, logits)

    def start(self, request: Request) -> DraftSource:
        """The small model's drafts."""
        return LittleDrafts(self.drafter(request), self.config, request)

    def accept(self, draft: Draft, logits: Tensor, text: Written) -> list[int]:
        """The small model's tokens up to the first that is taken back, then one of the large model."""
        for node, token in enumerate(draft.ids[1:]):
            scores = text.scores(logits[node])
            best, surprise = int(scores.argmax()), -float(scores.log_softmax(-1)[token])
            taken_back = surprise > self.config.rollback and best != token
            if text.add(best if taken_back else token) or taken_back:
                return list(range(node + 1))
        text.add(text.choose(logits[len(draft) - 1]))
        return list(range(len(draft)))


class LittleDrafts(DrafterSource):
    """Chains of the small model for one text."""

    config: BildConfig

    def __init__(self, drafter: Drafter, config: BildConfig, request: Request) -> None:
        super().__init__(drafter, config, request)
        self.fallbacks, self.rollbacks = 0, 0

    @property
    def extra(self) -> dict[str, Any]:
        """How often the large model took over because the small one was unsure, and how often it took tokens back."""
        return {"fallbacks": self.fallbacks, "rollbacks": self.rollbacks}

    def propose(self, root: int, room: int) -> Draft:
        """The small model's greedy tokens while it is sure."""
        tokens = [root]
        logits = self.drafter.follow(self.request.text.new)
        while len(tokens) <= min(room, self.config.most):
            law = self.drafter.law(logits, tokens[1:])
            if float(law.max()) < self.config.fallback:
                self.fallbacks += 1
                break
            tokens.append(int(law.argmax()))
            if len(tokens) <= min(room, self.config.most):
                logits = self.drafter.grow(tokens[-1:], [len(tokens) - 3])[0]
        return Draft.chain(tokens)

    def observe(self, draft: Draft, logits: Tensor, path: Sequence[int]) -> None:
        """Counts what was taken back."""
        self.rollbacks += len(path) < len(draft) and not self.request.text.ended
