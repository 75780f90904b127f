"""Grids, cuts and reading order of tiled images agree with transformers and with the published rules."""

import numpy as np
import pytest
import torch
from einops import rearrange
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.modeling_llava_next import unpad_image

from mmllm.errors import InputError
from mmllm.preprocessing.mosaic import pack, unpadded
from mmllm.preprocessing.tiles import choose_grid, cut
from mmllm.tokens import Tiling, VisualTokens

PINPOINTS = [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]
SIZES = [(25, 60), (60, 25), (333, 500), (1000, 1000), (2000, 300), (336, 336), (7, 900)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_grid_as_transformers(height, width):
    assert choose_grid(height, width, PINPOINTS) == select_best_resolution((height, width), PINPOINTS)


def test_the_two_rules_differ():
    pinpoints = [(24, 48), (48, 24), (48, 48), (72, 24), (24, 72)]
    assert choose_grid(25, 60, pinpoints, rule="fill") == (24, 48)
    assert choose_grid(25, 60, pinpoints, rule="llava") == (24, 72)


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("mosaic", [(12, 12), (6, 18), (18, 6), (48, 48)])
def test_unpadding_as_transformers(height, width, mosaic):
    rows, cols = unpadded(mosaic, Tiling(rows=1, cols=1, height=height, width=width))
    picture = torch.arange(mosaic[0] * mosaic[1]).view(1, *mosaic)
    assert torch.equal(
        picture[:, rows.start : rows.stop, cols.start : cols.stop], unpad_image(picture, (height, width))
    )


def test_cut():
    image = np.random.default_rng(0).integers(0, 255, (50, 120, 3), dtype=np.uint8)
    tiles, tiling = cut(image, [(24, 48), (48, 48), (24, 72)], tile=24)
    assert tiling == Tiling(rows=1, cols=3, height=50, width=120)
    assert tiles.shape == (4, 24, 24, 3)
    # a canvas 24 x 72 shows 120 x 50 pixels at 58 x 24, centred: black on both sides
    assert (tiles[1][:, :7] == 0).all()
    assert (tiles[3][:, -7:] == 0).all()
    assert (tiles[2].max(axis=(1, 2)) > 0).all()


def test_cut_of_the_exact_size_is_the_image():
    image = np.random.default_rng(0).integers(0, 255, (48, 24, 3), dtype=np.uint8)
    tiles, tiling = cut(image, [(48, 24)], tile=24)
    assert (tiling.rows, tiling.cols) == (2, 1)
    assert np.array_equal(np.concatenate([tiles[1], tiles[2]]), image)


def whole(tilings, side=3):
    partitions = max(one.partitions for one in tilings)
    shape = (len(tilings), partitions, side * side)
    mask = torch.zeros(shape, dtype=torch.bool)
    for image, one in enumerate(tilings):
        mask[image, : one.partitions] = True
    features = torch.randn(*shape, 5, generator=torch.Generator().manual_seed(0))
    return VisualTokens(features=features, grid=(side, side), mask=mask, tiling=tuple(tilings))


def by_hand(features, tiling, side, unpad, newline):
    base, tiles = features[0], features[1 : tiling.partitions]
    mosaic = rearrange(tiles, "(r c) (h w) d -> d (r h) (c w)", r=tiling.rows, h=side)
    if unpad:
        mosaic = unpad_image(mosaic, (tiling.height, tiling.width))
    if newline is not None:
        mosaic = torch.cat([mosaic, newline[:, None, None].expand(-1, mosaic.shape[1], 1)], dim=-1)
    return torch.cat([base, rearrange(mosaic, "d h w -> (h w) d")])


@pytest.mark.parametrize("unpad", [True, False])
@pytest.mark.parametrize("with_newline", [True, False])
def test_packing_whole_tokens(unpad, with_newline):
    tilings = [
        Tiling(rows=2, cols=2, height=40, width=90),
        Tiling(rows=1, cols=3, height=25, width=60),
        Tiling(rows=3, cols=1, height=80, width=20),
    ]
    tokens = whole(tilings)
    newline = torch.full((5,), 9.0) if with_newline else None
    packed, mask = pack(tokens, unpad=unpad, newline=newline)
    for image, tiling in enumerate(tilings):
        expected = by_hand(tokens.features[image], tiling, 3, unpad, newline)
        assert torch.equal(packed[image][mask[image]], expected)
        assert mask[image, : len(expected)].all()


def test_packing_reduced_tokens():
    tiling = Tiling(rows=2, cols=2, height=40, width=90)
    tokens = whole([tiling])
    keep = torch.rand(1, 5, 9, generator=torch.Generator().manual_seed(1)) > 0.5
    marked = tokens.replace(features=torch.where(keep.unsqueeze(-1), tokens.features, torch.nan))
    everything, mask = pack(marked)
    reduced, reduced_mask = pack(tokens.replace(mask=keep))
    everything = everything[0][mask[0]]
    assert torch.equal(reduced[0][reduced_mask[0]], everything[~everything.isnan().any(-1)])


def test_image_that_is_not_tiled():
    tokens = whole([Tiling(rows=0, cols=0, height=9, width=9), Tiling(rows=1, cols=1, height=9, width=9)])
    packed, mask = pack(tokens, newline=torch.zeros(5))
    assert mask.sum(1).tolist() == [9, 9 + 9 + 3]
    assert torch.equal(packed[0, :9], tokens.features[0, 0])


def test_bad_input():
    with pytest.raises(InputError, match="at least one canvas"):
        choose_grid(10, 10, [])
    with pytest.raises(InputError, match="whole 24 px tiles"):
        cut(np.zeros((9, 9, 3), dtype=np.uint8), [(24, 50)], tile=24)
    with pytest.raises(InputError, match="both"):
        Tiling(rows=2, cols=0, height=9, width=9)
    with pytest.raises(InputError, match="pixels"):
        Tiling(rows=1, cols=1, height=0, width=9)
    tokens = whole([Tiling(rows=1, cols=2, height=9, width=9)])
    with pytest.raises(InputError, match="tiled images"):
        pack(tokens.replace(tiling=None))
    with pytest.raises(ValueError, match="partitions"):
        tokens.replace(tiling=(Tiling(rows=2, cols=2, height=9, width=9),))
