"""SpecTr (arXiv 2310.15141): several chains of a draft model, accepted by K-SEQ. Exact.

K independent chains of T tokens are drawn, and their nodes scored in one pass; chains with one beginning share its
nodes. At each position the chains that are still alive are the candidates. A chain is alive as long as all its tokens
were accepted. A greedy text gets the K best first tokens, each with its most probable continuation.

K chains, T tokens, N nodes, V vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmllm.decoding import acceptance
from mmllm.decoding.draft import Draft
from mmllm.decoding.drafted import DraftedDecoding
from mmllm.decoding.drafter import DrafterConfig, DrafterSource
from mmllm.decoding.kseq import kseq_residual, smallest_rho
from mmllm.decoding.tree import DraftSource, Request, TreeDecoding
from mmllm.decoding.writing import Written
from mmllm.errors import InputError
from mmllm.fields import require
from mmllm.registry import register


@dataclass(frozen=True, kw_only=True)
class SpecTrConfig(DrafterConfig):
    """How many chains, and how long they are."""

    candidates: int = 8
    """K: chains that are drawn."""
    tokens: int = 4
    """T: tokens of each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.candidates >= 1, self, "candidates", "at least 1")
        require(self.tokens >= 1, self, "tokens", "at least 1")


@dataclass(frozen=True, kw_only=True, eq=False)
class ChainsDraft(Draft):
    """A tree of chains."""

    chains: tuple[tuple[int, ...], ...] = ()
    """The nodes of each chain behind the root, in the order in which the chains were drawn."""


@register("decoding", "spectr", config=SpecTrConfig)
class SpecTr(DraftedDecoding, TreeDecoding):
    """Several chains of a draft model at once (SpecTr, K-SEQ): exact."""

    config: SpecTrConfig

    def start(self, request: Request) -> DraftSource:
        """A source that draws chains."""
        return Chains(self.drafter(request), self.config, request)

    def accept(self, draft: Draft, logits: Tensor, text: Written) -> list[int]:
        """K-SEQ for samples, the target's own choice for a greedy text."""
        if not text.sample:
            return acceptance.point(draft, logits, text)
        assert isinstance(draft, ChainsDraft)
        return accept_chains(draft, logits, text)


class Chains(DrafterSource):
    """Chains of a drafter for one text."""

    config: SpecTrConfig

    def propose(self, root: int, room: int) -> ChainsDraft:
        """K chains as deep as there is room."""
        length = min(self.config.tokens, room)
        tokens, parents = [root], [-1]
        if not length:
            return ChainsDraft(tokens=torch.tensor(tokens), parents=torch.tensor(parents))
        law = self.drafter.law(self.drafter.follow(self.request.text.new), [])
        laws: dict[int, Tensor] = {0: law}  # behind each node
        rows: list[Tensor] = [torch.zeros_like(law)]
        words: dict[int, list[int]] = {0: []}
        node_of: dict[tuple[int, int], int] = {}
        chains: list[list[int]] = [[] for _ in range(self.config.candidates)]
        for level in range(length):
            before = len(tokens)
            for chain, token in zip(chains, self._drawn(chains, laws), strict=False):
                parent = chain[-1] if chain else 0
                if (parent, token) not in node_of:
                    node_of[parent, token] = len(tokens)
                    words[len(tokens)] = [*words[parent], token]
                    tokens.append(token)
                    parents.append(parent)
                    rows.append(laws[parent])
                chain.append(node_of[parent, token])
            if level + 1 < length:  # nobody asks for the laws behind the last tokens
                logits = self.drafter.grow(tokens[before:], [parent - 1 for parent in parents[before:]])
                laws |= {
                    node: self.drafter.law(logits[node - before], words[node]) for node in range(before, len(tokens))
                }
        chains = [chain for chain in chains if chain]
        return ChainsDraft(
            tokens=torch.tensor(tokens),
            parents=torch.tensor(parents),
            proposal=torch.stack(rows),
            chains=tuple(map(tuple, chains)),
        )

    def _drawn(self, chains: Sequence[Sequence[int]], laws: dict[int, Tensor]) -> list[int]:
        """The next token of each chain; fewer than K for a greedy text with fewer words."""
        if not self.request.text.sample and not chains[0]:
            return laws[0].topk(min(len(chains), int((laws[0] > 0).sum()))).indices.tolist()
        return [self.drafter.pick(laws[chain[-1] if chain else 0]) for chain in chains if chain or not chains[0]]


def accept_chains(draft: ChainsDraft, logits: Tensor, text: Written) -> list[int]:
    """The path that K-SEQ accepts; the text grows along it, and by one token more.

    Args:
        draft: with `proposal` and `chains`.
        logits: N V, of the target.
        text: sampled.

    Raises:
        InputError: if a drafted token cannot come from its own law.
    """
    alive, node = list(draft.chains), 0
    while True:
        law, depth = text.law(logits[node]), draft.depth[node]
        if not alive or depth == len(alive[0]):
            text.add(text.chance.draw(law))
            return draft.path_to(node)
        assert draft.proposal is not None
        proposal = draft.proposal[alive[0][depth]].to(law)
        rho = smallest_rho(law, proposal, len(alive))
        accepted = None
        for chain in alive:
            token = draft.ids[chain[depth]]
            if not float(proposal[token]) > 0:
                raise InputError(f"id {token} was drafted, and its law gives it no probability")
            if text.chance.accepts(min(1.0, float(law[token]) / (rho * float(proposal[token])))):
                accepted = chain[depth]
                break
        if accepted is None:
            text.add(text.chance.draw(kseq_residual(law, proposal, rho, len(alive))))
            return draft.path_to(node)
        if text.add(draft.ids[accepted]):
            return draft.path_to(node)
        alive = [chain for chain in alive if chain[depth] == accepted]
        node = accepted
