"""RAPID (arXiv 2502.20330): a drafter with a short view of a long context; the target with the whole context verifies.

For a video, the drafter sees a few frames and the target the whole clip. With `eta` above 0 the drafter's knowledge
goes into the target's law: p' = softmax(z + eta (q - p) where q >= alpha max q), with the target's scores z. Tokens are
accepted with min(1, p' / q). The residual norm((p' - q)+) makes what is emitted exactly p'. The released one,
norm(max(p - q, p - p', 0)), gives neither p' nor p. With eta 0 both are the target's own law.

V vocabulary, N nodes
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mmllm.decoding.acceptance import accept_probability, residual
from mmllm.decoding.draft import Draft
from mmllm.decoding.drafted import DraftedDecoding
from mmllm.decoding.drafter import DrafterConfig, DrafterSource
from mmllm.decoding.tree import DraftSource, Request, TreeDecoding
from mmllm.decoding.writing import Written
from mmllm.fields import require
from mmllm.registry import register


@dataclass(frozen=True, kw_only=True)
class RapidConfig(DrafterConfig):
    """What the drafter sees, and how much of what it knows goes into the answer."""

    frames: int | None = 8
    """Frames of the video that the drafter sees, evenly spaced; all if None."""
    gamma: int = 10
    """The most tokens of a draft."""
    confidence: float = 0.4
    """Drafting stops where the drafter's best probability is below this."""
    eta: float = 0.0
    """How strongly the drafter's law changes the target's; 0 is exact."""
    alpha: float = 0.1
    """Only words that the drafter gives at least this share of its best probability are changed."""
    residual: Literal["exact", "released"] = "exact"
    """What is emitted after a rejection: so that the whole is p', or as the released code does it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.gamma >= 1, self, "gamma", "at least 1")
        require(0 <= self.confidence <= 1, self, "confidence", "from 0 to 1")
        require(self.eta >= 0, self, "eta", "0 or more")
        require(0 < self.alpha <= 1, self, "alpha", "above 0 and at most 1")


@register("decoding", "rapid", config=RapidConfig)
class Rapid(DraftedDecoding, TreeDecoding):
    """A drafter that sees a few frames, a target that sees the whole clip (RAPID): exact with eta 0."""

    config: RapidConfig

    @property
    def other_law(self) -> str:
        """What is written with eta above 0."""
        return "a law moved towards a drafter that sees fewer frames (RAPID, eta above 0)" if self.config.eta else ""

    def start(self, request: Request) -> DraftSource:
        """Chains of the drafter."""
        return ShortViewDrafts(self.drafter(request), self.config, request)

    def accept(self, draft: Draft, logits: Tensor, text: Written) -> list[int]:
        """Drafted tokens by the moved law, then a correction, or a token of the target's own law."""
        for node, token in enumerate(draft.ids[1:]):
            assert draft.proposal is not None
            accepted, emitted = self._tried(text, logits[node], token, draft.proposal[node + 1])
            if text.add(emitted) or not accepted:
                return list(range(node + 1))
        text.add(text.choose(logits[len(draft) - 1]))
        return list(range(len(draft)))

    def _tried(self, text: Written, logits: Tensor, token: int, proposal: Tensor) -> tuple[bool, int]:
        """Whether a drafted token is accepted, and the token that is emitted."""
        scores, proposal = text.scores(logits), proposal.to(logits.device)
        moved = moved_law(scores, proposal, self.config.eta, self.config.alpha)
        if not text.sample:
            best = int(moved.argmax()) if self.config.eta else int(scores.argmax())
            return best == token, best
        if text.chance.accepts(accept_probability(moved, proposal, token)):
            return True, token
        if self.config.residual == "released":
            return False, text.chance.draw(released_residual(scores.softmax(-1), moved, proposal))
        return False, text.chance.draw(residual(moved, proposal))


def moved_law(scores: Tensor, proposal: Tensor, eta: float, alpha: float) -> Tensor:
    """p', V: the target's law with the drafter's knowledge.

    Args:
        scores: V, of the target.
        proposal: V, the drafter's law.
        eta, alpha: see `RapidConfig`.
    """
    law = scores.softmax(-1)
    known = proposal >= alpha * proposal.max()
    return (scores + eta * known * (proposal - law)).softmax(-1)


def released_residual(law: Tensor, moved: Tensor, proposal: Tensor) -> Tensor:
    """norm(max(p - q, p - p', 0)), V: what the released code emits after a rejection."""
    rest = torch.maximum(law - proposal, law - moved).clamp(min=0)
    total = rest.sum()
    return rest / total if float(total) > 0 else law


class ShortViewDrafts(DrafterSource):
    """Chains of a drafter for one text."""

    config: RapidConfig

    def propose(self, root: int, room: int) -> Draft:
        """Tokens while the drafter is confident."""
        tokens = [root]
        logits = self.drafter.follow(self.request.text.new)
        rows: list[Tensor] = []
        while len(tokens) <= min(room, self.config.gamma):
            law = self.drafter.law(logits, tokens[1:])
            if float(law.max()) < self.config.confidence:
                break
            rows.append(law)
            tokens.append(self.drafter.pick(law))
            if len(tokens) <= min(room, self.config.gamma):
                logits = self.drafter.grow(tokens[-1:], [len(tokens) - 3])[0]
        proposal = torch.stack([torch.zeros_like(rows[0]), *rows]) if rows else None
        return Draft.chain(tokens, proposal)
