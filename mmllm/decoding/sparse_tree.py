"""Trees of the most probable guesses, with extra rows that make the next ones (Parallel Prompt Decoding).

    root - 0 - 0 - s1        node "rank 0, then rank 1" has the path (0, 1); s1, s2 are extra rows behind a node,
    |    |   - 1 - s1        written -1, -2 in a path. A node that is accepted gives its extra rows' laws, from which
    s1   s1 - s2             the next tree is made: the tree for as many levels as the node had extra rows.
    s2

k levels (extra rows of the root), R ranks, n nodes behind the root
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmllm.errors import InputError

Path = tuple[int, ...]
MOST_LEVELS = 4


@dataclass(frozen=True, kw_only=True)
class SparseTree:
    """Which guesses are drafted, and how many extra rows stand behind each."""

    levels: int
    """k: extra rows of the root."""
    paths: tuple[Path, ...]
    """n: ranks from the root to each node, the most probable node first."""
    stops: tuple[float, ...]
    """n: the chance that the accepted path ends at the node."""
    extras: tuple[int, ...]
    """n: extra rows of each node."""

    @cached_property
    def rows(self) -> tuple[Path, ...]:
        """Paths of all rows behind the root: nodes and extra rows, by depth, then by path."""
        paths = list(self.paths)
        for path, count in (((), self.levels), *zip(self.paths, self.extras, strict=True)):
            paths += [(*path, *range(-1, -depth - 1, -1)) for depth in range(1, count + 1)]
        return tuple(sorted(paths, key=lambda path: (len(path), path)))

    @cached_property
    def parents(self) -> list[int]:
        """Of the root and all rows, by number; -1 for the root."""
        number = {path: row for row, path in enumerate(((), *self.rows))}
        return [-1, *(number[path[:-1]] for path in self.rows)]

    def indices(self, ranks: int) -> list[int]:
        """Where each row's token or embedding is in the list [root, R of level 1, ..., R of level k, s1 ... sk].

        Extra rows are counted from its end: s1 is -k.

        Args:
            ranks: R.
        """
        return [0, *(self._index(path, ranks) for path in self.rows)]

    def _index(self, path: Path, ranks: int) -> int:
        return path[-1] + ranks * (len(path) - 1) + 1 if path[-1] >= 0 else -path[-1] - self.levels - 1


def checked_accuracies(accuracies: Tensor) -> Tensor:
    """The same float32 (k R): how often the guess of each rank is right, at each distance.

    Raises:
        InputError: if they are no such numbers.
    """
    if accuracies.ndim != 2 or not 1 <= len(accuracies) <= MOST_LEVELS or not accuracies.shape[1]:
        raise InputError(f"accuracies must be (k, R) with k from 1 to {MOST_LEVELS}, not {tuple(accuracies.shape)}")
    rows = accuracies.float()
    if not bool(((rows >= 0) & (rows <= 1)).all()) or bool((rows.sum(dim=1) > 1 + 1e-5).any()):
        raise InputError(f"accuracies of a level must be 0 or more and at most 1 in sum: {rows.tolist()}")
    if bool((rows.diff(dim=1) > 1e-6).any()):
        raise InputError(f"accuracies of a level must not increase from rank to rank: {rows.tolist()}")
    return rows


def best_paths(accuracies: Tensor, count: int) -> tuple[list[Path], list[float]]:
    """The `count` most probable paths, the best first, and their probabilities (five decimals); of equal ones the
    first in order of a search in depth.

    Args:
        accuracies: float32, k R. A path's probability is the product of those of its ranks.
        count: at least 1.
    """
    best: list[tuple[float, Path]] = [(1.0, ())]
    beams: list[tuple[float, Path]] = best
    for row in accuracies.numpy():
        below = [
            (np.float32(chance) * value, (*path, rank)) for chance, path in beams for rank, value in enumerate(row)
        ]
        beams = sorted(below, key=lambda entry: (-entry[0], entry[1]))[:count]  # a prefix is as probable at least
        best = best + beams
    ranked = sorted(best[1:], key=lambda entry: (-entry[0], entry[1]))[:count]
    return [path for _, path in ranked], [round(float(chance), 5) for chance, _ in ranked]


def stop_probabilities(paths: Sequence[Path], chances: Sequence[float]) -> list[float]:
    """The chance that the accepted path ends at each node: its own without those of its children."""
    below: dict[Path, float] = {}
    for path, chance in zip(paths, chances, strict=True):
        below[path[:-1]] = below.get(path[:-1], 0.0) + chance
    return [chance - below.get(path, 0.0) for path, chance in zip(paths, chances, strict=True)]


def extra_rows(stops: Sequence[float], gains: Sequence[float], limit: int) -> list[int]:
    """How many extra rows each node has, so that nodes and extra rows are at most `limit`, if each keeps one at least.

    All have k at first. One is taken away where that loses least: at the node with the smallest
    stop probability * (gain of its number - gain of one fewer), the first on ties.

    Args:
        stops: n.
        gains: k. What a tree with one level, two levels, ... accepts on average.
        limit: of the rows.
    """
    extras = [len(gains)] * len(stops)
    while len(stops) + sum(extras) > limit:
        losses = [
            (stop * (gains[count - 1] - gains[count - 2]), node)
            for node, (stop, count) in enumerate(zip(stops, extras, strict=True))
            if count > 1
        ]
        if not losses:
            break
        extras[min(losses)[1]] -= 1
    return extras


def expected_accepted(trees: Mapping[int, SparseTree], gains: Sequence[float]) -> float:
    """Drafted tokens that a round accepts in the long run.

    As the released code counts, a round in which nothing is accepted is followed by one without a draft, and that by
    the tree with all levels. Its decoding, and ours, drafts at once.

    Args:
        trees: levels -> tree.
        gains: k, as in `extra_rows`.
    """
    k = len(gains)
    moves = np.zeros((k + 1, k + 1))  # from a state to the next, by its levels
    moves[0, k] = 1.0
    for state, tree in trees.items():
        for stop, extra in zip(tree.stops, tree.extras, strict=True):
            moves[state, extra] += stop
        moves[state, 0] = 1.0 - sum(tree.stops)
    equations = np.vstack([(moves.T - np.eye(k + 1))[:-1], np.ones(k + 1)])
    law = np.linalg.solve(equations, [*[0.0] * k, 1.0])
    return float(law[1:] @ np.asarray(gains))


def sparse_trees(accuracies: Tensor, limit: int) -> dict[int, SparseTree]:
    """Levels -> the tree that is drafted from so many laws: 1 to k.

    The tree of one level has all ranks, others as many nodes as promise most, by search.

    Args:
        accuracies: k R, measured.
        limit: most nodes and extra rows together; the root and its k extra rows come on top.

    Raises:
        InputError: if a tree of this limit has no place for a node with its extra row.
    """
    accuracies = checked_accuracies(accuracies)
    k, ranks = accuracies.shape
    if limit < k + 2:
        raise InputError(f"limit = {limit}: a tree behind {k} levels needs at least {k + 2} rows")
    most = limit // 2
    nodes = {levels: best_paths(accuracies[:levels], most if levels > 1 else min(ranks, most))
             for levels in range(1, k + 1)}  # fmt: skip
    few = max(1, limit // (k + 1))
    sizes = [range(len(nodes[1][0]), len(nodes[1][0]) + 1)]
    sizes += [range(min(few, len(nodes[levels][0])), len(nodes[levels][0]) + 1) for levels in range(2, k + 1)]
    best: dict[int, SparseTree] = {}
    most_accepted = -1.0
    for chosen in product(*sizes):
        gains = [sum(nodes[levels][1][:size]) for levels, size in enumerate(chosen, start=1)]
        trees = {levels: _tree(*nodes[levels], size, gains, limit) for levels, size in enumerate(chosen, start=1)}
        if (accepted := expected_accepted(trees, gains)) > most_accepted:
            best, most_accepted = trees, accepted
    return best


def _tree(paths: Sequence[Path], chances: Sequence[float], size: int, gains: Any, limit: int) -> SparseTree:
    """The tree of the `size` best nodes."""
    stops = stop_probabilities(paths[:size], chances[:size])
    return SparseTree(
        levels=len(gains), paths=tuple(paths[:size]), stops=tuple(stops), extras=tuple(extra_rows(stops, gains, limit))
    )


def full_trees(accuracies: Tensor, count: int) -> dict[int, SparseTree]:
    """Levels -> the tree of the `count` most probable guesses, each with all k extra rows.

    Args:
        accuracies: k R, measured.
        count: at least 1.
    """
    accuracies = checked_accuracies(accuracies)
    trees = {}
    for levels in range(1, len(accuracies) + 1):
        paths, chances = best_paths(accuracies[:levels], count)
        stops, extras = stop_probabilities(paths, chances), (len(accuracies),) * len(paths)
        trees[levels] = SparseTree(levels=len(accuracies), paths=tuple(paths), stops=tuple(stops), extras=extras)
    return trees


def measured_accuracies(ranks: Tensor, width: int) -> Tensor:
    """float32, k R: the share of places where the guess of each rank was right, made to fall from rank to rank.

    Args:
        ranks: int64, P k. The rank of the right token at each place and distance; -1 where there was none.
        width: R.
    """
    places = (ranks >= 0).sum(dim=0).clamp(min=1)
    hits = torch.stack([(ranks == rank).sum(dim=0) for rank in range(width)], dim=1)
    return (hits / places[:, None]).sort(dim=1, descending=True).values
