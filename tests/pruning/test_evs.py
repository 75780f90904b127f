"""EVS keeps what vLLM keeps: the first frame, then the patches of the whole video that changed most."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from mmllm import registry
from mmllm.errors import ConfigError, InputError
from mmllm.tokens import Tiling, VisualTokens

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "modern-evs.safetensors"


def video(frames=5, grid=(3, 4), seed=0, batch=1):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, frames, grid[0] * grid[1], 8, generator=generator)
    return VisualTokens(features=features, grid=grid)


def kept_places(tokens, **fields):
    """bool, B T (H W): which places of the grid remain."""
    out = registry.build("reducer", {"name": "evs", **fields})(tokens)
    return out.on_grid()[1].flatten(2)


@pytest.mark.parametrize("case", "abcdef")
def test_the_choice_is_the_originals(case):
    with safe_open(GOLDEN, "pt") as golden:
        settings = json.loads(golden.metadata()["config"])["cases"][case]
        features, wanted = golden.get_tensor(f"in.{case}.tokens"), golden.get_tensor(f"out.{case}.mask")
    frames, height, width = settings["thw"]
    grid = height // settings["merge"], width // settings["merge"]
    tokens = VisualTokens(features=features.view(1, frames, -1, features.shape[-1]), grid=grid)
    assert torch.equal(kept_places(tokens, rate=settings["q"]).flatten(), wanted)
    reducer = registry.build("reducer", {"name": "evs", "rate": settings["q"]})
    assert reducer.kept_tokens(grid[0] * grid[1], frames) == settings["kept"] == int(wanted.sum())


@pytest.mark.parametrize("fields", [{"rate": 0.0}, {"ratio": 1.0}])
def test_everything_is_identity(fields):
    tokens = video()
    out = registry.build("reducer", {"name": "evs", **fields})(tokens)
    assert torch.equal(out.features, tokens.features)
    assert out.complete


@pytest.mark.parametrize("fields", [{"rate": 0.3}, {"ratio": 0.7}, {"ratio": 0.5, "least": 2}])
def test_the_count_follows_from_the_shape(fields):
    reducer = registry.build("reducer", {"name": "evs", **fields})
    for seed in range(3):
        out = reducer(video(seed=seed, batch=2))
        assert out.mask.sum((1, 2)).tolist() == [reducer.kept_tokens(12, 5)] * 2


def test_a_still_video_keeps_its_first_frame_or_the_least_of_each():
    tokens = video(frames=4)
    still = tokens.replace(features=tokens.features[:, :1].expand(-1, 4, -1, -1))
    assert kept_places(still, ratio=0.25).sum(-1).tolist() == [[12, 0, 0, 0]]
    assert kept_places(still, ratio=0.25, least=2).sum(-1).tolist() == [[12, 2, 2, 2]]


def test_a_change_is_found_where_it_is():
    tokens = video(frames=4)
    features = tokens.features[:, :1].repeat(1, 4, 1, 1)
    features[0, 2:, 7] = -features[0, 0, 7]
    out = kept_places(tokens.replace(features=features), ratio=13 / 48)
    assert out[0, 2].nonzero().flatten().tolist() == [7]
    assert out.sum() == 13


def test_a_video_in_a_padded_batch_keeps_the_same():
    alone, features = video(frames=3, seed=1), torch.zeros(2, 5, 12, 8)
    features[0, :3], features[1] = alone.features[0], video(seed=2).features[0]
    mask = torch.ones(2, 5, 12, dtype=torch.bool)
    mask[0, 3:] = False
    both = kept_places(VisualTokens(features=features, grid=(3, 4), mask=mask), rate=0.5)
    assert torch.equal(both[:1, :3], kept_places(alone, rate=0.5))
    assert not both[0, 3:].any()
    assert torch.equal(both[1:], kept_places(video(seed=2), rate=0.5))


def test_a_patch_without_one_before_it_is_new():
    tokens = video(frames=3)
    half = registry.build("reducer", "uniform:ratio=0.5")(tokens)
    out = registry.build("reducer", "evs:ratio=0.5")(half)
    kept = [out.index[0, t][out.mask[0, t]].tolist() for t in range(3)]
    assert kept[0] == half.index[0, 0].tolist()
    assert all(set(kept[t]) <= set(half.index[0, t].tolist()) for t in range(3))
    assert out.mask.sum() == 9


def test_half_precision_makes_the_same_choice():
    tokens = video(seed=4)
    rounded = tokens.replace(features=tokens.features.half())
    assert torch.equal(
        kept_places(rounded, rate=0.5), kept_places(tokens.replace(features=rounded.features.float()), rate=0.5)
    )


def test_no_video():
    empty = VisualTokens(features=torch.zeros(0, 3, 12, 8), grid=(3, 4))
    assert registry.build("reducer", "evs:rate=0.5")(empty).shape == (0, 3, 12, 8)


@pytest.mark.parametrize("fields", [{}, {"rate": 0.5, "ratio": 0.5}])
def test_one_of_rate_and_ratio(fields):
    with pytest.raises(ConfigError, match="exactly one of rate and ratio"):
        registry.config_of("reducer", {"name": "evs", **fields})


@pytest.mark.parametrize("fields", [{"rate": 1.0}, {"rate": float("nan")}, {"ratio": 0.0}, {"rate": 0.5, "least": -1}])
def test_values_that_are_not_allowed(fields):
    with pytest.raises(ConfigError, match=r"(?i)evs(config)?\.(rate|ratio|least)"):
        registry.config_of("reducer", {"name": "evs", **fields})


def test_what_cannot_be_compared():
    tokens, reducer = video(), registry.build("reducer", "evs:rate=0.5")
    with pytest.raises(InputError, match="1D tokens"):
        reducer(tokens.replace(grid=None))
    with pytest.raises(InputError, match="tiled"):
        reducer(tokens.replace(tiling=(Tiling(rows=2, cols=2, height=9, width=9),)))
    tokens.features[0, 1, 0] = float("nan")
    with pytest.raises(InputError, match="finite"):
        reducer(tokens)
