"""HiRED against recorded masks, its worked example, and the properties its budgets must have."""

import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from einops import rearrange
from nearness import assert_near
from safetensors.torch import load_file

from mmllm import registry
from mmllm.encoders.attention import attention_row
from mmllm.errors import ConfigError, InputError
from mmllm.preprocessing.mosaic import pack
from mmllm.pruning.hired import spaced, split_budget, tile_scores
from mmllm.tokens import Tiling, VisualTokens

GOLDEN = load_file(Path(__file__).resolve().parents[1] / "data" / "hired-single.safetensors")
SQUARE = Tiling(rows=2, cols=2, height=100, width=100)


def tiled(*tilings, side=6, seed=0, first=None):
    """Tokens of images with random attention, padded to the most partitions."""
    generator = torch.Generator().manual_seed(seed)
    partitions = max(one.partitions for one in tilings)
    shape = (len(tilings), partitions, side * side)
    mask = torch.zeros(shape, dtype=torch.bool)
    for image, one in enumerate(tilings):
        mask[image, : one.partitions] = True
    scores = {name: torch.rand(shape, generator=generator) for name in ("cls_attention", "cls_attention@0")}
    if first is not None:
        scores["cls_attention@0"][:, 0] = first
    return VisualTokens(
        features=torch.randn(*shape, 4, generator=generator),
        grid=(side, side),
        mask=mask,
        scores=scores,
        tiling=tilings,
    )


def kept(tokens, **fields):
    return registry.build("reducer", {"name": "hired", **fields})(tokens).mask.sum(-1).tolist()


def test_recorded_attention():
    # the recording has every row of the attention; ours is the first one, averaged over the heads
    row = attention_row(GOLDEN["in.q"][:, 0], GOLDEN["in.k"], heads=4)
    assert_near(row, GOLDEN["out.attn"][:, :, 0].mean(1))


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.4, 0.99])
@pytest.mark.parametrize("mode", ["paper", "release"])
def test_recorded_single_partition(rate, mode):
    scores = GOLDEN["in.single_attn_cls"].mean(0)[1:].view(1, 1, 36)
    tokens = VisualTokens(
        features=torch.zeros(1, 1, 36, 2), grid=(6, 6), scores={"cls_attention": scores, "cls_attention@0": scores}
    )
    expected = GOLDEN[f"out.single_mask.r{rate}"].bool()
    for given in (tokens, tokens.replace(tiling=(Tiling(rows=0, cols=0, height=9, width=9),))):
        out = registry.build("reducer", {"name": "hired", "ratio": rate, "mode": mode})(given)
        assert torch.equal(out.on_grid()[1].flatten(), expected)


def test_worked_example():
    assert split_budget(100, 576, np.array([0.32, 0.08, 0.58, 0.02]), 0.5) == [50, 16, 4, 29, 1]


def test_headline_numbers():
    tokens = tiled(SQUARE, side=24)
    out = registry.build("reducer", "hired:ratio=0.2")(tokens)
    counts = out.mask.sum(-1)[0].tolist()
    assert counts[0] == 288
    assert 576 - 4 <= sum(counts) <= 576
    single = tokens.replace(tiling=None)
    assert kept(single, ratio=0.2) == [[115] * 5]
    assert kept(single, ratio=0.4) == [[230] * 5]


@pytest.mark.parametrize("mode", ["paper", "release"])
@pytest.mark.parametrize("rate", [0.05, 0.2, 0.4, 0.8, 1.0])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_budgets(mode, rate, alpha):
    tilings = (SQUARE, Tiling(rows=1, cols=3, height=20, width=70), Tiling(rows=3, cols=1, height=70, width=20))
    tokens = tiled(*tilings)
    for image, one in enumerate(tilings):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            counts = kept(tokens, ratio=rate, alpha=alpha, mode=mode)[image]
        budget = int(one.partitions * 36 * rate + 1e-9)
        assert counts[0] == (36 if rate == 1 else min(int(budget * alpha + 1e-6), 36))
        assert sum(counts) <= budget
        assert max(counts) <= 36
        assert all(count == 0 for count in counts[one.partitions :])


@pytest.mark.parametrize("mode", ["paper", "release"])
def test_everything_is_identity_however_attention_is_spread(mode):
    tokens = tiled(SQUARE, Tiling(rows=1, cols=3, height=20, width=70))
    out = registry.build("reducer", {"name": "hired", "ratio": 1.0, "alpha": 0.5, "mode": mode})(tokens)
    assert torch.equal(out.features, tokens.features)
    assert torch.equal(out.mask, tokens.mask)


def released(late, first, tiling, side, rate, alpha):
    """Masks by the released code's rule, step by step; one row a partition."""
    tiles, patches = tiling.rows * tiling.cols, side * side
    budget = int((1 + tiles) * patches * rate)
    whole = min(int(budget * alpha), patches)
    rest = min(budget - whole, tiles * patches)
    highest = np.argsort(-first[0], kind="stable")[: int(patches * (1 - alpha))]
    hits = [sum(int(j) // (patches // tiles) == tile for j in highest) for tile in range(tiles)]
    counts = [whole] + [min(rest * hit // sum(hits), patches) for hit in hits]
    masks = np.zeros((1 + tiles, patches), dtype=bool)
    for row, (scores, count) in enumerate(zip(late, counts, strict=True)):
        masks[row, np.argsort(-scores, kind="stable")[:count]] = True
    return masks


def released_packing(features, masks, tiling, side):
    """Kept features, the mosaic laid out with rows and columns exchanged as the released code has it."""
    rows = tiling.cols
    mosaic, kept = (
        rearrange(values[1:], "(r c) (h w) ... -> (r h) (c w) ...", r=rows, h=side) for values in (features, masks)
    )
    height, width = mosaic.shape[:2]
    if tiling.width / tiling.height > width / height:
        cut = (height - int(tiling.height * width / tiling.width)) // 2
        mosaic, kept = mosaic[cut : height - cut], kept[cut : height - cut]
    else:
        cut = (width - int(tiling.width * height / tiling.height)) // 2
        mosaic, kept = mosaic[:, cut : width - cut], kept[:, cut : width - cut]
    return np.concatenate([features[0][masks[0]], mosaic[kept]])


@pytest.mark.parametrize(("rate", "alpha"), [(0.1, 0.5), (0.2, 0.5), (0.4, 0.3), (0.8, 0.7), (0.35, 0.0), (0.55, 0.9)])
def test_many_partitions_in_release_mode(rate, alpha):
    tilings = (
        Tiling(rows=2, cols=2, height=100, width=90),
        Tiling(rows=1, cols=3, height=25, width=60),
        Tiling(rows=3, cols=1, height=61, width=20),
        Tiling(rows=2, cols=2, height=40, width=95),
    )
    tokens = tiled(*tilings)
    out = registry.build("reducer", {"name": "hired", "ratio": rate, "alpha": alpha, "mode": "release"})(tokens)
    packed, mask = pack(out.replace(tiling=tuple(one.transposed for one in tilings)))
    present = rearrange(out.on_grid()[1], "b t h w -> b t (h w)").numpy()
    for image, one in enumerate(tilings):
        late, first, features = (
            values[image, : one.partitions].numpy()
            for values in (tokens.scores["cls_attention"], tokens.scores["cls_attention@0"], tokens.features)
        )
        expected = released(late, first, one, 6, rate, alpha)
        assert np.array_equal(present[image, : one.partitions], expected)
        assert np.array_equal(packed[image][mask[image]].numpy(), released_packing(features, expected, one, 6))


@pytest.mark.parametrize(("rate", "alpha"), [(0.2, 0.5), (0.4, 0.3), (0.8, 0.7)])
def test_many_partitions_in_paper_mode(rate, alpha):
    tiling = Tiling(rows=2, cols=3, height=100, width=150)
    tokens = tiled(tiling)
    counts = kept(tokens, ratio=rate, alpha=alpha)[0]
    first, budget = tokens.scores["cls_attention@0"][0, 0].double().view(6, 6), int(7 * 36 * rate)
    whole = min(int(budget * alpha), 36)
    areas = [first[3 * y : 3 * y + 3, 2 * x : 2 * x + 2].sum() for y in range(2) for x in range(3)]
    shares = [min(int((budget - whole) * area / first.sum() + 1e-6), 36) for area in areas]
    assert counts == [whole, *shares]


def test_release_rounds_as_its_floating_point_does():
    scores = {name: torch.rand(1, 1, 100) for name in ("cls_attention", "cls_attention@0")}
    tokens = VisualTokens(features=torch.zeros(1, 1, 100, 1), grid=(10, 10), scores=scores)
    assert kept(tokens, ratio=0.29) == [[29]]
    assert kept(tokens, ratio=0.29, mode="release") == [[28]]  # 100 * 0.29 is 28.999...
    assert split_budget(90, 99, np.ones(1), 0.7) == [63, 27]
    assert split_budget(90, 99, np.ones(1), 0.7, guard=0.0) == [62, 28]


def test_even_split():
    first = torch.zeros(36)
    first[0] = 1.0
    assert kept(tiled(SQUARE, first=first), total=60, split="even") == [[30, 7, 7, 7, 7]]
    assert kept(tiled(SQUARE, first=first), total=60) == [[30, 30, 0, 0, 0]]


def test_spatial_budget_keeps_spaced_patches_beside_the_attended():
    assert list(spaced(36, 0.25)) == [0, 4, 8, 12, 16, 20, 24, 28, 32]
    assert list(spaced(36, 0.5)) == list(range(0, 35, 2))
    assert list(spaced(36, 0.0)) == []
    assert list(spaced(36, 1.0)) == list(range(35))  # the last patch is never among them
    tokens = tiled(SQUARE)
    plain, beside = (
        registry.build("reducer", f"hired:ratio=0.2,spatial_budget={share}")(tokens).on_grid()[1].flatten(2)
        for share in (0, 0.25)
    )
    expected = plain.clone()
    expected[..., ::4] = True
    expected[..., 35] = plain[..., 35]
    assert torch.equal(beside, expected)
    reducer = registry.build("reducer", "hired:ratio=0.2,spatial_budget=0.25")
    assert reducer.kept_tokens(36, 5) == 36 + 5 * 9 >= beside.sum()


def test_everything_is_identity():
    tokens = tiled(SQUARE, first=torch.ones(36))
    for fields in ({"ratio": 1.0, "alpha": 0.2}, {"keep": 36, "alpha": 0.2}, {"total": 180, "alpha": 0.2}):
        out = registry.build("reducer", {"name": "hired", **fields})(tokens)
        assert torch.equal(out.features, tokens.features)


@pytest.mark.parametrize("corner", range(4))
def test_attended_quadrant_gets_the_tiles_budget(corner):
    y, x = torch.arange(36) // 6, torch.arange(36) % 6
    first = ((y // 3 == corner // 2) & (x // 3 == corner % 2)).float()
    tokens = tiled(SQUARE, first=first)
    counts = kept(tokens, total=40)[0]
    assert counts[0] == 20
    assert counts[1 + corner] == 20
    released = kept(tokens, total=40, mode="release")[0]  # bands instead of quadrants: shared by two bands
    assert released[1 + corner] < 20


def test_release_is_right_for_one_column():
    tiling = Tiling(rows=3, cols=1, height=90, width=30)
    first = torch.zeros(36)
    first[14:18] = 1.0
    tokens = tiled(tiling, first=first)
    paper, release = (kept(tokens, total=24, alpha=0.9, mode=mode)[0] for mode in ("paper", "release"))
    assert paper == release == [21, 0, 3, 0]


def test_uniform_attention_shares_evenly():
    for rows, cols in ((2, 2), (1, 3), (3, 1), (2, 3)):
        tokens = tiled(Tiling(rows=rows, cols=cols, height=50, width=50), first=torch.full((36,), 0.01))
        counts = kept(tokens, ratio=0.4)[0]
        rest = int((1 + rows * cols) * 36 * 0.4) - counts[0]
        assert counts[1:] == [rest // (rows * cols)] * (rows * cols)


def test_more_budget_keeps_a_superset():
    tokens = tiled(SQUARE, Tiling(rows=1, cols=2, height=30, width=60))
    presents = [
        registry.build("reducer", f"hired:ratio={rate}")(tokens).on_grid()[1] for rate in (0.1, 0.2, 0.4, 0.7, 1.0)
    ]
    for fewer, more in pairwise(presents):
        assert (more | ~fewer).all()


def test_redistribution_spends_everything():
    first = torch.zeros(36)
    first[0] = 1.0
    tokens = tiled(SQUARE, first=first)
    assert sum(kept(tokens, total=100, alpha=0.2)[0]) == 20 + 36
    assert sum(kept(tokens, total=100, alpha=0.2, redistribute=True)[0]) == 100


def test_scale_does_not_matter():
    tokens = tiled(SQUARE)
    scaled = tokens.replace(scores={name: 8 * value for name, value in tokens.scores.items()})
    reducer = registry.build("reducer", "hired:ratio=0.2")
    assert torch.equal(reducer(tokens).index, reducer(scaled).index)


def test_nothing_attended_is_shared_evenly_with_a_warning():
    with pytest.warns(UserWarning, match="no tile"):
        assert split_budget(20, 36, np.zeros(4), 0.5) == [10, 2, 2, 2, 2]
    with pytest.warns(UserWarning, match="no tile"):
        kept(tiled(SQUARE), ratio=0.5, alpha=1.0, mode="release")


def test_bad_input():
    for wrong in ("alpha=1.5", "alpha=-0.1", "spatial_budget=2", "split=random", "mode=release-100"):
        with pytest.raises(ConfigError, match=wrong.split("=")[0]):
            registry.config_of("reducer", f"hired:ratio=0.2,{wrong}")
    for rate in (0.0, -0.2, 1.1):
        with pytest.raises(ConfigError, match="ratio"):
            registry.config_of("reducer", f"hired:ratio={rate}")
    with pytest.raises(InputError, match=r"ratio = 0.001 leaves no token"):
        kept(tiled(SQUARE), ratio=0.001)
    with pytest.raises(InputError, match=r"5 partitions; its tiling says 3"):
        kept(tiled(SQUARE).replace(tiling=(Tiling(rows=1, cols=2, height=9, width=9),)), ratio=0.2)
    for value in (float("nan"), float("inf"), -0.1):
        with pytest.raises(InputError, match="finite"):
            kept(tiled(SQUARE, first=torch.full((36,), value)), ratio=0.2)
    tokens = tiled(SQUARE)
    tokens.scores["cls_attention"][0, 1, 3] = float("nan")
    for share in (0.0, 0.25):
        with pytest.raises(InputError, match="finite"):
            kept(tokens, ratio=0.2, spatial_budget=share)
    with pytest.raises(ValueError, match=r"cls_attention must be \(1, 5, 36\)"):
        tiled(SQUARE).replace(scores={"cls_attention": torch.rand(1, 5, 37)})
    with pytest.raises(InputError, match="6x6 grid of 36 patches cannot be cut into 5"):
        tile_scores(torch.ones(36), torch.arange(36), (6, 6), Tiling(rows=5, cols=1, height=9, width=9), "release", 0.5)
    with pytest.raises(InputError, match="square grids"):
        tile_scores(torch.ones(36), torch.arange(36), (4, 9), SQUARE, "release", 0.5)
    with pytest.raises(InputError, match="place"):
        tile_scores(torch.ones(36), torch.arange(36), None, SQUARE, "paper", 0.5)


def test_padding_partitions_belong_to_the_image():
    tokens = tiled(SQUARE)
    tokens.mask[0, 2] = False
    with pytest.raises(InputError, match="4 partitions; its tiling says 5"):
        kept(tokens, ratio=0.2)


def test_paper_and_release_agree_on_which_patches_of_the_whole_image():
    tokens = tiled(SQUARE)
    masks = [
        rearrange(
            registry.build("reducer", f"hired:ratio=0.4,mode={mode}")(tokens).on_grid()[1], "b t h w -> b t (h w)"
        )
        for mode in ("paper", "release")
    ]
    assert torch.equal(masks[0][:, 0], masks[1][:, 0])


def test_frames_of_a_video_keep_what_fastervlm_keeps():
    generator = torch.Generator().manual_seed(3)
    scores = {name: torch.rand(2, 5, 36, generator=generator) for name in ("cls_attention", "cls_attention@0")}
    frames = VisualTokens(features=torch.randn(2, 5, 36, 8, generator=generator), grid=(6, 6), scores=scores)
    for keep in (1, 9, 36):
        ours, theirs = (registry.build("reducer", f"{name}:keep={keep}")(frames) for name in ("hired", "fastervlm"))
        assert torch.equal(ours.index, theirs.index)
