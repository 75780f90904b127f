"""Uniform tokens are the regular lattices where those exist, and cover the picture in between."""

import pytest
import torch

from mmllm import registry
from mmllm.pruning.uniform import spread
from mmllm.tokens import VisualTokens


def present(side, **budget):
    tokens = VisualTokens(features=torch.zeros(1, 1, side * side, 1), grid=(side, side))
    return registry.build("reducer", {"name": "uniform", **budget})(tokens).on_grid()[1][0, 0]


@pytest.mark.parametrize("side", [8, 16, 24])
def test_quarters_are_every_second_row_and_column(side):
    lattice = torch.zeros(side, side, dtype=torch.bool)
    lattice[::2, ::2] = True
    assert torch.equal(present(side, ratio=0.25), lattice)
    lattice = torch.zeros(side, side, dtype=torch.bool)
    lattice[::4, ::4] = True
    assert torch.equal(present(side, ratio=1 / 16), lattice)


def test_half_is_a_chessboard():
    y, x = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    assert torch.equal(present(8, ratio=0.5), (x + y) % 2 == 0)


@pytest.mark.parametrize("keep", [36, 58, 100, 144, 288])
def test_quadrants_get_their_share(keep):
    quadrants = present(24, keep=keep).unfold(0, 12, 12).unfold(1, 12, 12).sum((-1, -2)).float()
    assert quadrants.max() - quadrants.min() <= 0.4 * keep / 4


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (5, 3), (16, 16)])
def test_every_place_has_its_turn(height, width):
    turn = spread(height, width)
    assert len(set(turn.tolist())) == height * width


def test_one_dimensional_tokens():
    tokens = VisualTokens(features=torch.zeros(1, 1, 16, 1), grid=None)
    reducer = registry.build("reducer", "uniform:keep=4")
    assert reducer(tokens).index[0, 0].tolist() == [0, 4, 8, 12]
