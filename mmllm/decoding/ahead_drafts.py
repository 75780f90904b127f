"""Drafts from the guesses of extra rows: each verification also reads extra rows, whose laws make the next tree.

N nodes, D width, V vocabulary
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mmllm.decoding.ahead import RANKS
from mmllm.decoding.draft import Draft
from mmllm.decoding.sparse_tree import SparseTree
from mmllm.decoding.tree import DraftSource, Request


class AheadDrafts(DraftSource):
    """Trees of guesses for one text. The first draft is the root with its extra rows, since the prompt has none.

    Args:
        request: of the text.
        trees: levels of guesses -> tree.
        embeddings: k D, which stand at extra rows; None if it does not matter what is read there.
    """

    def __init__(self, request: Request, trees: Mapping[int, SparseTree], embeddings: Tensor | None) -> None:
        self.request, self.embeddings = request, embeddings
        levels = next(iter(trees.values())).levels
        self.trees = {0: SparseTree(levels=levels, paths=(), stops=(), extras=()), **trees}
        self.guesses: list[list[int]] = []
        """Tokens by level and rank, the best first."""
        self.behind: list[int] = []
        """Of each row of the draft: the node behind which it is an extra row; itself for a token."""
        self.number: list[int] = []
        """Which extra row it is, from 1; 0 for a token."""

    def propose(self, root: int, room: int) -> Draft:
        """The tree of the guesses, as deep as there is room, with extra rows behind its nodes."""
        tree, barred = self.trees[len(self.guesses)], set(self.request.forbidden)
        tokens, parents = [root], [-1]
        self.behind, self.number = [0], [0]
        row_of = {0: 0}  # row of the whole tree -> row of this draft
        for whole, path in enumerate(tree.rows, start=1):
            rank, above = path[-1], row_of.get(tree.parents[whole])
            if len(path) > room or above is None:
                continue
            if rank >= 0:
                level = self.guesses[len(path) - 1]
                if rank >= len(level) or level[rank] in barred:
                    continue
            row_of[whole] = len(tokens)
            self.behind.append(self.behind[above] if rank < 0 else len(tokens))
            self.number.append(max(0, -rank))
            tokens.append(0 if rank < 0 else level[rank])
            parents.append(above)
        ids = torch.tensor(tokens)
        return Draft(
            tokens=ids,
            parents=torch.tensor(parents),
            embeddings=None if self.embeddings is None else self._embedded(ids),
            is_token=torch.tensor(self.number) == 0,
        )

    def observe(self, draft: Draft, logits: Tensor, path: Sequence[int]) -> None:
        """The guesses of the extra rows behind the last accepted node."""
        rows = [row for row, node in enumerate(self.behind) if node == path[-1] and self.number[row]]
        if not rows:
            self.guesses = []
            return
        ranks = min(RANKS, self.request.vocabulary)
        self.guesses = self.request.words_only(logits[rows]).topk(ranks, dim=-1).indices.tolist()

    def _embedded(self, tokens: Tensor) -> Tensor:
        """N D: the tokens' own embeddings, and those of extra rows."""
        assert self.embeddings is not None
        words = self.request.model.get_input_embeddings()
        embedded = words(tokens.to(words.weight.device)).clone()
        for row, number in enumerate(self.number):
            if number:
                embedded[row] = self.embeddings[number - 1]
        return embedded
