"""Trees with extra rows: the released builder's choice and buffers, brute force, and bad input."""

from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmllm.decoding.masks import ancestry
from mmllm.decoding.sparse_tree import (
    best_paths,
    expected_accepted,
    extra_rows,
    full_trees,
    measured_accuracies,
    sparse_trees,
    stop_probabilities,
)

GOLDEN = load_file(Path(__file__).parents[1] / "data" / "decoding-ppd-tree.safetensors")
TREES = sparse_trees(GOLDEN["accuracies"], int(GOLDEN["limit"]))


def golden_paths(state):
    return [tuple(rank for rank in row if rank >= 0) for row in GOLDEN[f"state{state}.paths"].tolist()]


@pytest.mark.parametrize("state", [1, 2, 3])
def test_nodes_and_extra_rows_are_those_of_the_released_builder(state):
    tree = TREES[state]
    assert list(tree.paths) == golden_paths(state)
    assert torch.allclose(torch.tensor(tree.stops), GOLDEN[f"state{state}.node_probability"], atol=1e-6)
    assert list(tree.extras) == GOLDEN[f"state{state}.prompt_tokens"].tolist()


@pytest.mark.parametrize("state", [1, 2, 3])
def test_rows_parents_and_depths_are_the_released_buffers(state):
    tree = TREES[state]
    assert tree.indices(10) == GOLDEN[f"state{state}.tree_indices"].tolist()
    visible, depth = ancestry(tuple(tree.parents))
    assert torch.equal(visible, GOLDEN[f"state{state}.attn_mask"].bool())
    assert torch.equal(depth, GOLDEN[f"state{state}.position_ids"])
    rows = ((), *tree.rows)
    words = [row for row, path in enumerate(rows) if not path or path[-1] >= 0]
    assert words == GOLDEN[f"state{state}.normal_token_indices"].tolist()
    behind = [[rows.index((*rows[word], *range(-1, -depth - 1, -1))) for depth in range(1, count + 1)]
              for word, count in zip(words, counts(tree, rows, words), strict=True)]  # fmt: skip
    padded = [row + [-1] * (3 - len(row)) for row in behind]
    assert padded == GOLDEN[f"state{state}.special_token_indices"].tolist()


def counts(tree, rows, words):
    extras = {(): tree.levels, **dict(zip(tree.paths, tree.extras, strict=True))}
    return [extras[rows[word]] for word in words]


def test_the_expected_number_is_the_released_one():
    gains = [sum(best_paths(GOLDEN["accuracies"][:state], len(TREES[state].paths))[1]) for state in (1, 2, 3)]
    assert expected_accepted(TREES, gains) == pytest.approx(float(GOLDEN["expected"]), abs=1e-6)


@pytest.mark.parametrize("count", [1, 5, 17])
def test_best_paths_are_those_of_all_paths(count):
    accuracies = torch.rand(3, 4, generator=torch.Generator().manual_seed(count)).sort(dim=1, descending=True).values
    accuracies = accuracies / accuracies.sum(dim=1, keepdim=True)
    every = [path for depth in (1, 2, 3) for path in product(range(4), repeat=depth)]
    chance = {path: float(torch.stack([accuracies[i, r] for i, r in enumerate(path)]).prod()) for path in every}
    paths, chances = best_paths(accuracies, count)
    expected = sorted(chance.values(), reverse=True)[:count]
    assert torch.allclose(torch.tensor(chances), torch.tensor(expected), atol=1e-5)
    assert all(path[:-1] in {(), *paths} for path in paths)
    stops = stop_probabilities(paths, chances)
    assert sum(stops) == pytest.approx(sum(c for p, c in zip(paths, chances, strict=True) if len(p) == 1))


def test_extra_rows_are_taken_where_they_are_worth_least():
    assert extra_rows([0.5, 0.1], [0.4, 0.7], 5) == [2, 1]
    assert extra_rows([0.1, 0.1], [0.4, 0.7], 5) == [1, 2]
    assert extra_rows([0.1, 0.1], [0.4, 0.7], 1) == [1, 1]


@pytest.mark.parametrize(("levels", "limit"), [(1, 3), (2, 7), (3, 5), (4, 12)])
def test_trees_of_any_limit_keep_it(levels, limit):
    row = torch.tensor([0.5, 0.2, 0.1])
    trees = sparse_trees(row.repeat(levels, 1), limit)
    assert set(trees) == set(range(1, levels + 1))
    for state, tree in trees.items():
        assert len(tree.paths) + sum(tree.extras) <= limit
        assert all(len(path) <= state for path in tree.paths)
        assert all(1 <= extra <= levels for extra in tree.extras)
        assert len(tree.rows) == len(tree.paths) + sum(tree.extras) + levels


def test_full_trees_have_all_extra_rows_behind_every_node():
    trees = full_trees(torch.tensor([[0.5, 0.3], [0.4, 0.1]]), 4)
    assert trees[1].paths == ((0,), (1,))
    assert trees[2].paths == ((0,), (1,), (0, 0), (1, 0))
    assert trees[1].extras == (2, 2)
    assert trees[2].extras == (2, 2, 2, 2)
    assert trees[1].levels == 2


def test_accuracies_are_counted_by_rank():
    ranks = torch.tensor([[0, 1], [0, 0], [2, -1], [9, 1]])
    measured = measured_accuracies(ranks, 3)
    assert torch.allclose(measured, torch.tensor([[0.5, 0.25, 0.0], [2 / 3, 1 / 3, 0.0]]))


@pytest.mark.parametrize(
    ("accuracies", "limit", "message"),
    [
        (torch.zeros(0, 3), 9, r"\(k, R\)"),
        (torch.zeros(5, 3), 9, "k from 1 to 4"),
        (torch.tensor([[0.2, 0.3]]), 9, "must not increase"),
        (torch.tensor([[0.8, 0.3]]), 9, "at most 1 in sum"),
        (torch.tensor([[float("nan"), 0.3]]), 9, "at most 1 in sum"),
        (torch.tensor([[0.5, 0.3], [0.4, 0.1]]), 3, "at least 4 rows"),
    ],
)
def test_bad_input_is_refused(accuracies, limit, message):
    with pytest.raises(ValueError, match=message):
        sparse_trees(accuracies, limit)
