"""Token Recycling (arXiv 2408.08696): what followed a token lately is drafted again. Exact; nothing is trained.

A matrix holds the k most probable successors of each token, as the target last computed them. A fixed tree of ranks
makes a draft of it: the node of rank r below a token is the successor r of that token. Every node that is verified,
accepted or not, writes a row. The matrix outlives a request: an instance answers better the longer it is used.

V vocabulary, N nodes, k successors
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mmllm.decoding import acceptance
from mmllm.decoding.draft import Draft
from mmllm.decoding.tree import DraftSource, Request, TreeDecoding
from mmllm.decoding.writing import Written
from mmllm.errors import ConfigError, InputError
from mmllm.fields import require
from mmllm.registry import register

TEMPLATE = tuple(
    tuple(map(int, path))
    for path in (
        "0 1 2 3 4 5 6 7 00 01 02 03 04 05 06 07 10 11 12 13 20 21 22 30 31 40 50 60 70 000 001 002 003 004 005 006 007"
        " 010 011 012 020 021 030 040 050 060 070 100 101 110 200 300 400 500 0000 0001 0002 0003 0004 0010 0011 0020"
        " 0030 0040 0100 0200 1000 2000 3000 00000 00001 00002 00010 00020 00100 01000 10000 000000 000001 000100"
    ).split()
)
"""The published tree: each path is the ranks from the root to a node."""


_STEP = 0.4
"""What a level costs beside the rank, in bits: a first successor is right in about three of four places."""


def smaller_template(count: int) -> tuple[tuple[int, ...], ...]:
    """The `count` likeliest paths of the template, by depth; all are reached through each other.

    The successor of rank r is taken to be right with a chance that falls like 1 / (r + 1).
    """
    best = sorted(TEMPLATE, key=lambda path: (_bits(path), len(path), path))[:count]
    return tuple(sorted(best, key=lambda path: (len(path), path)))


def _bits(path: tuple[int, ...]) -> float:
    """How unlikely the ranks of a path are."""
    return sum(math.log2(rank + 1) + _STEP for rank in path)


@dataclass(frozen=True, kw_only=True)
class TokenRecyclingConfig:
    """How large drafts are."""

    tree: int = 20
    """Nodes of a draft behind its root: the likeliest ones of the published tree, which has 80."""
    width: int = 8
    """Successors that are kept of each token."""
    rule: Literal["exact", "typical"] = "exact"
    """What is accepted: what the target writes, or also what it finds likely enough (another law)."""

    def __post_init__(self) -> None:
        require(1 <= self.tree <= len(TEMPLATE), self, "tree", f"from 1 to {len(TEMPLATE)} nodes")
        require(self.width >= 1, self, "width", "at least 1")
        ranks = max(max(path) for path in smaller_template(self.tree)) + 1
        require(self.width >= ranks, self, "width", f"at least {ranks}, the ranks in a tree of {self.tree} nodes")


@register("decoding", "token-recycling", config=TokenRecyclingConfig)
class TokenRecycling(TreeDecoding):
    """Drafts what lately followed each token (Token Recycling): exact, nothing to train."""

    writes_alone = True

    def __init__(self, config: TokenRecyclingConfig) -> None:
        self.config = config
        self.template = smaller_template(config.tree)
        number = {path: node for node, path in enumerate(((), *self.template))}
        self.parents = [-1, *(number[path[:-1]] for path in self.template)]
        self.matrix: Tensor | None = None
        """int64, V k: the successors of each token; None before the first text."""

    @property
    def other_law(self) -> str:
        """What is written with the typical rule."""
        return acceptance.TYPICAL_LAW if self.config.rule == "typical" else ""

    def state_dict(self) -> dict[str, Tensor]:
        """What was learned of earlier texts."""
        return {} if self.matrix is None else {"matrix": self.matrix}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Goes on with what was learned elsewhere.

        Raises:
            InputError: if rows have another number of successors.
        """
        matrix = state.get("matrix")
        if matrix is not None and (matrix.ndim != 2 or matrix.shape[1] != self.config.width):
            raise InputError(f"matrix must be (V, {self.config.width}), not {tuple(matrix.shape)}")
        self.matrix = None if matrix is None else matrix.cpu()

    def start(self, request: Request) -> DraftSource:
        """A source that reads and writes the matrix.

        Raises:
            ConfigError: if the matrix is that of another vocabulary.
        """
        if self.config.width > request.vocabulary:
            raise ConfigError(f"width = {self.config.width}: the vocabulary has only {request.vocabulary} ids")
        if self.matrix is None:
            self.matrix = torch.zeros(request.vocabulary, self.config.width, dtype=torch.long)
        if len(self.matrix) != request.vocabulary:
            raise ConfigError(
                f"this token-recycling has learned from {len(self.matrix)} ids, and the model has "
                f"{request.vocabulary}: take a new one for another vocabulary"
            )
        return RecycledDrafts(self, self.matrix, request)

    def accept(self, draft: Draft, logits: Tensor, text: Written) -> list[int]:
        """The longest path that the target writes; with the typical rule, that it finds likely enough."""
        return (acceptance.typical if self.config.rule == "typical" else acceptance.point)(draft, logits, text)


class RecycledDrafts(DraftSource):
    """Trees of recorded successors for one text."""

    def __init__(self, method: TokenRecycling, matrix: Tensor, request: Request) -> None:
        self.template, self.parents, self.matrix, self.request = method.template, method.parents, matrix, request
        self.barred = set(request.forbidden)

    def propose(self, root: int, room: int) -> Draft:
        """The tree of ranks below the root, as deep as there is room. Equal siblings are one node."""
        rows: dict[int, list[int]] = {}
        matrix = self.matrix.numpy()
        tokens, parents = [root], [-1]
        node_of = {0: 0}  # node of the whole template -> node of this draft
        child_of: dict[tuple[int, int], int] = {}  # (node, token) -> its child with that token
        for whole, path in enumerate(self.template, start=1):
            above = self.parents[whole]
            if len(path) > room or above not in node_of:
                continue
            before = tokens[node_of[above]]
            if before not in rows:
                rows[before] = matrix[before].tolist()
            token = rows[before][path[-1]]
            if token in self.barred:  # id 0 in rows that were never written may stand for visual tokens
                continue
            parent = node_of[above]
            if (parent, token) not in child_of:
                child_of[parent, token] = len(tokens)
                tokens.append(token)
                parents.append(parent)
            node_of[whole] = child_of[parent, token]
        return Draft(tokens=torch.tensor(tokens), parents=torch.tensor(parents))

    def observe(self, draft: Draft, logits: Tensor, path: Sequence[int]) -> None:
        """The successors of every node; of nodes with one token, the last writes its row."""
        best = self.request.words_only(logits).topk(self.matrix.shape[1], dim=-1).indices
        self.matrix.numpy()[draft.ids] = best.numpy(force=True)  # of equal indices the last one is written
