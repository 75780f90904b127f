"""DySpec (arXiv 2410.11744): a draft tree that grows where the drafter is most sure. Exact.

A queue holds (v, node, R): v estimates how likely verification gets there, R is the drafter's law behind the node
without what was drawn of it. The entry with the largest v gives a child. Where the text is sampled the child is drawn
of R, and siblings are accepted by the recursive rule without replacement; in a greedy text it is the best of R.

N nodes, V vocabulary
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import torch
from torch import Tensor

from mmllm.decoding.draft import Draft
from mmllm.decoding.drafted import DraftedDecoding
from mmllm.decoding.drafter import Drafter, DrafterConfig, DrafterSource
from mmllm.decoding.tree import DraftSource, Request, TreeDecoding
from mmllm.fields import require
from mmllm.registry import register


@dataclass(frozen=True, kw_only=True)
class DySpecConfig(DrafterConfig):
    """How large the tree is."""

    nodes: int = 24
    """Nodes behind the root."""
    threshold: float | None = None
    """Grow the tree depth by depth, one pass of the drafter each, wherever v is at least this; None for the queue,
    which needs a pass for each node whose children it looks at."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.nodes >= 1, self, "nodes", "at least 1")
        allowed = self.threshold is None or 0 < self.threshold <= 1
        require(allowed, self, "threshold", "above 0 and at most 1")


@register("decoding", "dyspec", config=DySpecConfig)
class DySpec(DraftedDecoding, TreeDecoding):
    """A draft tree that grows where the drafter is most sure (DySpec): exact."""

    config: DySpecConfig

    def start(self, request: Request) -> DraftSource:
        """A source that grows trees."""
        return GrownTrees(self.drafter(request), self.config, request)


class GrownTrees(DrafterSource):
    """Trees of a drafter for one text."""

    config: DySpecConfig

    def propose(self, root: int, room: int) -> Draft:
        """A tree as deep as there is room; `values` of its nodes are kept for those who look."""
        if not room:
            return Draft(tokens=torch.tensor([root]), parents=torch.tensor([-1]))
        tree = _Tree(root, self.drafter, self.drafter.law(self.drafter.follow(self.request.text.new), []), room)
        if self.config.threshold is None:
            tree.by_value(self.config.nodes)
        else:
            tree.by_depth(self.config.nodes, self.config.threshold)
        self.values = tree.values
        return Draft(
            tokens=torch.tensor(tree.tokens), parents=torch.tensor(tree.parents), proposal=torch.stack(tree.rows)
        )


class _Tree:
    """A tree while it grows; `law` (V) is the drafter's behind the root."""

    def __init__(self, root: int, drafter: Drafter, law: Tensor, room: int) -> None:
        self.drafter, self.room = drafter, room
        self.tokens, self.parents, self.values, self.words = [root], [-1], [1.0], [list[int]()]
        self.rows = [torch.zeros_like(law)]
        self.laws: dict[int, Tensor] = {0: law}
        self.read = {0: -1}  # node -> its number in the drafter's tree

    def by_value(self, nodes: int) -> None:
        """Adds children where v is largest; of equals, to the oldest entry."""
        age, queue = 0, [(-1.0, 0, 0, self.laws[0])]
        while queue and len(self.tokens) <= nodes:
            value, _, node, law = heapq.heappop(queue)
            if node not in self.laws:
                self._read([node])
                law = self.laws[node]
            child, rest, left = self._child(node, -value, law)
            entries = [(-left, node, rest)] if rest is not None and left > 0 else []
            if len(self.words[child]) < self.room:
                entries.append((-self.values[child], child, law))
            for entry in entries:
                age += 1
                heapq.heappush(queue, (entry[0], age, *entry[1:]))

    def by_depth(self, nodes: int, threshold: float) -> None:
        """Adds children to all nodes of a depth, compared with the threshold before each is drawn."""
        level = [0]
        while level:
            born: list[int] = []
            for node in level:
                value, law = self.values[node], self.laws[node]
                while value >= threshold and len(self.tokens) <= nodes:
                    child, rest, value = self._child(node, value, law)
                    born.append(child)
                    if rest is None:
                        break
                    law = rest
            level = [node for node in born if self.values[node] >= threshold and len(self.words[node]) < self.room]
            if level and len(self.tokens) <= nodes:
                self._read(level)
            else:
                level = []

    def _child(self, node: int, value: float, law: Tensor) -> tuple[int, Tensor | None, float]:
        """A new child of a node; what is left of the law (None if nothing), and of the value."""
        token = self.drafter.pick(law)
        share = float(law[token])
        self.tokens.append(token)
        self.parents.append(node)
        self.values.append(value * share)
        self.words.append([*self.words[node], token])
        self.rows.append(law)
        rest = law.index_fill(0, torch.tensor([token], device=law.device), 0.0)
        total = rest.sum()
        return len(self.tokens) - 1, rest / total if float(total) > 0 else None, value * (1 - share)

    def _read(self, nodes: list[int]) -> None:
        """The drafter's laws behind nodes, in one pass."""
        logits = self.drafter.grow(
            [self.tokens[node] for node in nodes], [self.read[self.parents[node]] for node in nodes]
        )
        count = len(self.drafter.reader.tokens) - len(nodes)
        for row, node in enumerate(nodes):
            self.read[node] = count + row
            self.laws[node] = self.drafter.law(logits[row], self.words[node])
