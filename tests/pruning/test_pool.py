"""Pooling of neighbouring patches: against torch's own pooling, and with patches that are gone."""

import pytest
import torch
from einops import rearrange

from mmllm import registry
from mmllm.errors import ConfigError, InputError
from mmllm.tokens import Tiling, VisualTokens


@pytest.mark.parametrize(("mode", "pool"), [("average", torch.nn.AvgPool2d), ("max", torch.nn.MaxPool2d)])
@pytest.mark.parametrize("side", [4, 5])
def test_whole_grids_as_torch_pools_them(mode, pool, side):
    tokens = VisualTokens(features=torch.randn(2, 3, side * side, 6), grid=(side, side))
    pooled = registry.build("reducer", f"pool:mode={mode}")(tokens)
    image = rearrange(tokens.features, "b t (h w) d -> (b t) d h w", h=side)
    expected = rearrange(pool(2)(image), "(b t) d h w -> b t (h w) d", b=2)
    torch.testing.assert_close(pooled.features, expected)
    assert pooled.grid == (2, 2)
    assert pooled.shape[2] <= registry.build("reducer", "pool").kept_tokens(side * side, 1)


@pytest.mark.parametrize("mode", ["average", "max"])
def test_patches_that_are_gone_do_not_count(mode):
    tokens = VisualTokens(features=torch.randn(1, 1, 16, 2), grid=(4, 4))
    kept = torch.tensor([[[0, 1, 5, 10]]])
    pooled = registry.build("reducer", f"pool:mode={mode}")(tokens.take(kept))
    assert pooled.mask[0, 0].tolist() == [True, False, False, True]
    first = tokens.features[0, 0, [0, 1, 5]]
    expected = first.mean(0) if mode == "average" else first.amax(0)
    torch.testing.assert_close(pooled.features[0, 0, 0], expected)
    torch.testing.assert_close(pooled.features[0, 0, 3], tokens.features[0, 0, 10])


def test_images_in_tiles_stay_whole():
    tiling = (Tiling(rows=1, cols=1, height=9, width=9),)
    tokens = VisualTokens(features=torch.randn(1, 2, 16, 2), grid=(4, 4), tiling=tiling)
    assert registry.build("reducer", "pool")(tokens) is tokens


def test_bad_input():
    with pytest.raises(ConfigError, match="stride"):
        registry.build("reducer", "pool:stride=0")
    with pytest.raises(InputError, match="patch grid"):
        registry.build("reducer", "pool")(VisualTokens(features=torch.randn(1, 1, 1, 2), grid=(1, 1)))


@pytest.mark.parametrize("side", [4, 5])
def test_groups_say_how_tokens_are_added_up(side):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, side * side, 6, generator=generator)
    mask = torch.rand(2, 3, side * side, generator=generator) < 0.7
    tokens = VisualTokens(features=features, grid=(side, side), mask=mask)
    reducer = registry.build("reducer", "pool")
    pooled, groups = reducer(tokens), reducer.groups(tokens)
    sums = torch.zeros(2, 3, 5, 6)  # the last one collects what is dropped
    slots = groups.owner.where(groups.owner >= 0, 4).unsqueeze(-1).expand(features.shape)
    sums = sums.scatter_add(2, slots, features * groups.weight.unsqueeze(-1))[:, :, :4]
    torch.testing.assert_close(sums[pooled.mask], pooled.features[pooled.mask])
    outside = torch.zeros(5, 5, dtype=torch.bool)
    outside[4], outside[:, 4] = True, True
    assert (groups.owner[~mask] == -1).all()
    assert side == 4 or (groups.owner[:, :, outside.flatten()] == -1).all()


def test_what_has_no_groups():
    tokens = VisualTokens(features=torch.randn(1, 2, 16, 4), grid=(4, 4))
    assert registry.build("reducer", "pool:stride=1").groups(tokens) is None
    assert registry.build("reducer", "uniform:keep=4").groups(tokens) is None
    with pytest.raises(ConfigError, match="mode=max is no weighted sum"):
        registry.build("reducer", "pool:mode=max").groups(tokens)
