"""A draft: tokens that may come next, as a tree whose root is the last token of the text.

N nodes, V vocabulary, D width
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mmllm.errors import InputError


@dataclass(frozen=True, kw_only=True, eq=False)
class Draft:
    """A rooted tree in topological order. Siblings are tried in the order of their index.

    Raises:
        InputError: if shapes do not fit, or a parent does not stand before its child.
    """

    tokens: Tensor
    """int64, N. The first is the last token of the text, which the target has not read yet."""
    parents: Tensor
    """int64, N. -1 for the root; a chain is -1, 0, 1, 2, ..."""
    proposal: Tensor | None = None
    """float, N V. Row i is the law that node i was drawn from, at the moment it was drawn; row 0 is not read. None for
    a fixed set of tokens (a point draft)."""
    embeddings: Tensor | None = None
    """N D. What the target reads in place of the tokens; None for their own embeddings."""
    is_token: Tensor | None = None
    """bool, N. False for nodes that are computed, but neither accepted nor kept; None if all are tokens."""

    def __post_init__(self) -> None:
        count = len(self.tokens)
        if self.tokens.ndim != 1 or self.tokens.shape != self.parents.shape or not count:
            raise InputError(
                f"tokens and parents of a draft must be (N,) with N >= 1, not {tuple(self.tokens.shape)} and "
                f"{tuple(self.parents.shape)}"
            )
        root, *others = self.parent_of
        if root != -1 or not all(0 <= parent < node for node, parent in enumerate(others, start=1)):
            raise InputError(
                f"parents of a draft must be -1, then each an earlier node (topological order): {self.parent_of}"
            )
        for name in ("proposal", "embeddings", "is_token"):
            value: Tensor | None = getattr(self, name)
            if value is not None and len(value) != count:
                raise InputError(f"{name} of a draft must have a row for each of {count} nodes, not {len(value)}")
        if self.proposal is not None and bool(self.proposal[1:].isnan().any()):
            raise InputError("the proposal of a draft holds NaN")

    @classmethod
    def chain(cls, tokens: Sequence[int], proposal: Tensor | None = None) -> Draft:
        """The draft of one sequence; its first token is the root."""
        return cls(tokens=torch.tensor(tokens), parents=torch.arange(-1, len(tokens) - 1), proposal=proposal)

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def ids(self) -> list[int]:
        """The tokens as a list."""
        return self.tokens.tolist()

    @cached_property
    def parent_of(self) -> list[int]:
        """The parents as a list."""
        return self.parents.tolist()

    @cached_property
    def depth(self) -> list[int]:
        """The distance of each node from the root."""
        depth = [0]
        for parent in self.parent_of[1:]:
            depth.append(depth[parent] + 1)
        return depth

    @cached_property
    def children(self) -> list[list[int]]:
        """The children of each node that are tokens, in order."""
        children: list[list[int]] = [[] for _ in self.ids]
        for node, parent in enumerate(self.parent_of[1:], start=1):
            if self.is_token is None or bool(self.is_token[node]):
                children[parent].append(node)
        return children

    def path_to(self, node: int) -> list[int]:
        """The nodes from the root to a node."""
        path = [node]
        while path[-1]:
            path.append(self.parent_of[path[-1]])
        return path[::-1]

    def refuse_ids(self, vocabulary: int, forbidden: Iterable[int]) -> None:
        """Refuses nodes behind the root whose ids the target cannot read as words.

        Args:
            vocabulary: V, of the target.
            forbidden: ids that stand for visual tokens.

        Raises:
            InputError: naming the id.
        """
        barred = set(forbidden)
        if barred.isdisjoint(self.ids) and min(self.ids) >= 0 and max(self.ids) < vocabulary:
            return
        for node, token in enumerate(self.ids[1:], start=1):
            is_word = self.is_token is None or bool(self.is_token[node])
            if is_word and (not 0 <= token < vocabulary or token in barred):
                why = "stands for visual tokens" if token in barred else f"the vocabulary has {vocabulary}"
                raise InputError(f"id {token} cannot be drafted: {why}")
