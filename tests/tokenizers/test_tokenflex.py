"""TokenFLEX: its pooling against the rule of floors and ceilings, its draws, and what it refuses."""

import math

import pytest
import torch

from mmllm import registry
from mmllm.errors import ConfigError, InputError
from mmllm.tokenizers.tokenflex import TokenFlexConfig, TokenFlexProjector, pooled_grid
from mmllm.tokens import VisualTokens


def projector(grid=(27, 27), **fields):
    torch.manual_seed(0)
    return TokenFlexProjector(TokenFlexConfig(**fields), in_width=6, out_width=10, grid=grid).eval()


def tokens(grid=(27, 27), batch=2, frames=1):
    torch.manual_seed(1)
    return VisualTokens(features=torch.randn(batch, frames, grid[0] * grid[1], 6), grid=grid)


@pytest.mark.parametrize(("grid", "side"), [((27, 27), 8), ((27, 27), 16), ((4, 6), 3), ((5, 9), 5), ((7, 7), 7)])
def test_cells_are_the_means_of_their_floors_and_ceilings(grid, side):
    features = tokens(grid).on_grid()[0]
    pooled, mask = pooled_grid(features, torch.ones(2, 1, *grid, dtype=torch.bool), side)
    for row in range(side):
        for column in range(side):
            cell = features[
                :,
                :,
                row * grid[0] // side : math.ceil((row + 1) * grid[0] / side),
                column * grid[1] // side : math.ceil((column + 1) * grid[1] / side),
            ]
            torch.testing.assert_close(pooled[:, :, row * side + column], cell.mean((2, 3)), rtol=1e-5, atol=1e-6)
    assert mask.all()


def test_the_whole_grid_is_left_as_it_is_and_a_constant_one_stays_constant():
    features = tokens((4, 4)).on_grid()[0]
    assert torch.equal(pooled_grid(features, torch.ones(2, 1, 4, 4, dtype=torch.bool), 4)[0], features.flatten(2, 3))
    constant = VisualTokens(features=torch.ones(1, 1, 729, 6), grid=(27, 27))
    for count in (1, 64, 144, 256):
        out = projector(tokens=count)(constant)
        torch.testing.assert_close(out.features, out.features[:, :, :1].expand_as(out.features))


def test_the_formula_and_the_places_of_its_tokens():
    part, given = projector(tokens=9, grid=(6, 6)), tokens((6, 6), frames=2)
    out = part(given)
    pooled = given.features.view(2, 2, 3, 2, 3, 2, 6).mean((3, 5)).flatten(2, 3)
    gate, up = pooled @ part.gate_proj.weight.T, pooled @ part.up_proj.weight.T
    torch.testing.assert_close(out.features, (gate * gate.sigmoid() * up) @ part.down_proj.weight.T)
    assert out.grid == part.grid_after((6, 6)) == (3, 3)
    assert out.features.shape[2] == part.token_count(36) == 9
    assert sorted(part.state_dict()) == ["down_proj.weight", "gate_proj.weight", "up_proj.weight"]


def test_dropped_patches_do_not_count():
    part, given = projector(tokens=4, grid=(4, 4)), tokens((4, 4))
    kept = torch.tensor([0, 1, 4, 10]).expand(2, 1, -1)  # three patches of the first cell, one of the last
    out = part(given.take(kept))
    assert out.mask[0, 0].tolist() == [True, False, False, True]
    alone = part(
        VisualTokens(features=given.features[:, :, [0, 1, 4]].mean(2, keepdim=True).repeat(1, 1, 16, 1), grid=(4, 4))
    )
    torch.testing.assert_close(out.features[:, :, 0], alone.features[:, :, 0])
    assert out.features.isfinite().all()


def test_one_set_of_weights_serves_any_number_of_tokens():
    state = projector(tokens=256).state_dict()
    for count in (1, 9, 729):
        other = projector(tokens=count)
        other.load_state_dict(state, strict=True)
        assert other(tokens()).features.shape == (2, 1, count, 10)


def test_training_draws_the_counts_at_their_rates_and_one_for_a_batch():
    part = projector(elastic=True, tokens=16).train()
    drawn = [part.count() for _ in range(10_000)]
    for count, rate in zip((64, 144, 256), (0.2, 0.3, 0.5), strict=True):
        assert abs(drawn.count(count) / 10_000 - rate) < 3 * math.sqrt(rate * (1 - rate) / 10_000)
    assert part(tokens(batch=3)).features.shape[2] in (64, 144, 256)
    assert part.eval().count() == 16
    torch.manual_seed(3)
    first = [part.train().count() for _ in range(20)]
    torch.manual_seed(3)
    assert [part.count() for _ in range(20)] == first  # machines with one seed draw alike


def test_bad_input():
    for wrong, message in (
        ("tokens=0", "square"),
        ("tokens=50", "49 or 64"),
        ("counts=64+100+200", "196 or 225"),
        ("rates=1+2", "3 numbers"),
        ("rates=0+0+0", "not all 0"),
        ("rates=-1+2+3", "at least 0"),
        ("inner_width=0", "positive"),
    ):
        with pytest.raises(ConfigError, match=message):
            registry.config_of("tokenizer", f"tokenflex:{wrong}")
    with pytest.raises(InputError, match="cannot enlarge: 64 tokens of a 7x9"):
        projector(grid=(7, 9), tokens=64)
    with pytest.raises(InputError, match="cannot enlarge: 256 tokens of a 12x12"):
        projector(grid=(12, 12), tokens=64, elastic=True)
    with pytest.raises(ValueError, match="10 tokens a frame do not fill a 3x3 grid"):
        projector(tokens=4)(VisualTokens(features=torch.randn(1, 1, 10, 6), grid=(3, 3)))
    with pytest.raises(InputError, match="1D tokens"):
        projector(tokens=4)(VisualTokens(features=torch.randn(1, 1, 4, 6), grid=None))
