"""Which nodes of a verified draft go into the text. Each rule returns their path, as long as the text has grown.

`greedy` and `point` rules take any draft; `recursive` takes drafts whose siblings were drawn, and is the speculative
rule where there is one sibling. All three keep the target's law. `typical` does not.

N nodes, V vocabulary
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmllm.decoding.draft import Draft
from mmllm.decoding.writing import Written
from mmllm.errors import InputError


def point(draft: Draft, logits: Tensor, text: Written) -> list[int]:
    """One choice of the target for each token that is emitted; the walk goes on while a child has that token.

    Greedy choices give the greedy text. Drawn ones give the tokens that plain sampling draws from the same seed.

    Args:
        draft: the tree; of siblings with one token, the one whose match is longest is on the path.
        logits: N V, of the target.
        text: grows.
    """
    alive, choose = [0], text.chooser(logits)
    while True:
        token = choose(alive[0])
        following = [child for node in alive for child in draft.children[node] if draft.ids[child] == token]
        if text.add(token) or not following:
            return draft.path_to(alive[0])
        alive = following


def recursive(draft: Draft, logits: Tensor, text: Written) -> list[int]:
    """Siblings are accepted one after another with min(1, p / q); what is left of p after each is tried with the next.

    Args:
        draft: with `proposal`: row i as it was when node i was drawn, so without earlier siblings if these were drawn
            without replacement.
        logits: N V, of the target.
        text: grows.
    """
    assert draft.proposal is not None
    node = 0
    while True:
        law, accepted = text.law(logits[node]), None
        for child in draft.children[node]:
            proposal, token = draft.proposal[child].to(law), draft.ids[child]
            if text.chance.accepts(accept_probability(law, proposal, token)):
                accepted = child
                break
            law = residual(law, proposal)
        token = text.chance.draw(law) if accepted is None else draft.ids[accepted]
        if text.add(token) or accepted is None:
            return draft.path_to(node)
        node = accepted


def tried(text: Written, logits: Tensor, token: int, proposal: Tensor) -> tuple[bool, int]:
    """Whether one drafted token is accepted, and the token that is emitted: that one, or its correction.

    Args:
        text: decides whether tokens are drawn; it does not grow.
        logits: V, of the target.
        token: drafted.
        proposal: V, the law that it was drawn from.
    """
    if not text.sample:
        best = text.choose(logits)
        return best == token, best
    law = text.law(logits)
    if text.chance.accepts(accept_probability(law, proposal, token)):
        return True, token
    return False, text.chance.draw(residual(law, proposal.to(law)))


def accept_probability(law: Tensor, proposal: Tensor, token: int) -> float:
    """min(1, p(x) / q(x)), from two laws (V).

    Raises:
        InputError: if the drafted token cannot come from its own law.
    """
    if not float(proposal[token]) > 0:
        raise InputError(f"id {token} was drafted, and its law gives it no probability")
    return min(1.0, float(law[token]) / float(proposal[token]))


def residual(law: Tensor, proposal: Tensor) -> Tensor:
    """What is emitted after a rejection: norm((p - q)+), V. It is p where nothing can be rejected."""
    rest = (law - proposal).clamp(min=0)
    total = rest.sum()
    return rest / total if float(total) > 0 else law


TYPICAL_EPSILON, TYPICAL_DELTA = 0.09, 0.3
"""Medusa's thresholds, as Parallel Prompt Decoding has them."""
TYPICAL_LAW = "tokens that the model finds likely enough (typical acceptance)"
"""What the typical rule writes."""


def typical(draft: Draft, logits: Tensor, text: Written) -> list[int]:
    """The longest path of tokens that are likely enough for the target; then the target's choice. Another law.

    Args:
        draft: the tree; the first of equally long paths is taken.
        logits: N V, of the target.
        text: grows.
    """
    is_typical, best = [True], 0
    for node in range(1, len(draft)):
        parent = draft.parent_of[node]
        words = [draft.ids[step] for step in draft.path_to(parent)[1:]]
        law = text.law(logits[parent], words) if is_typical[parent] and node in draft.children[parent] else None
        is_typical.append(law is not None and float(law[draft.ids[node]]) > typical_threshold(law))
        if is_typical[node] and draft.depth[node] > draft.depth[best]:
            best = node
    path = draft.path_to(best)
    for count, node in enumerate(path[1:], start=1):
        if text.add(draft.ids[node]):
            return path[:count]
    text.add(text.choose(logits[best]))
    return path


def typical_threshold(law: Tensor) -> float:
    """min(epsilon, delta * exp(-H)) of a law (V), with the entropy H in nats."""
    entropy = -float((law * (law + 1e-5).log()).sum())
    return min(TYPICAL_EPSILON, TYPICAL_DELTA * math.exp(-entropy))


def within(surprise: Tensor, limit: float) -> int:
    """How many tokens of a chain stand before the first whose -log p (float, N) is above a limit: BiLD's rule."""
    above = torch.nonzero(surprise > limit)
    return int(above[0]) if len(above) else len(surprise)
