"""Dropped patches are dark where they are, and heat maps show what reducers ranked by."""

import numpy as np
import pytest
import torch
from torch import nn

from mmllm import registry
from mmllm.errors import InputError
from mmllm.inference.overlay import DIMMED, dimmed, enlarged, heated, kept_patches, ranking_map
from mmllm.tokens import VisualTokens


def test_patches_cover_their_pixels():
    patches = np.arange(6).reshape(1, 2, 3)
    assert np.array_equal(enlarged(patches, 6, 6)[0], np.kron(patches[0], np.ones((3, 2))))
    assert enlarged(patches, 7, 9).shape == (1, 7, 9)


def test_dimming():
    frames = np.full((1, 8, 8, 3), 200, dtype=np.uint8)
    kept = np.array([[[True, False], [False, True]]])
    out = dimmed(frames, kept)[0]
    assert (out[:4, :4] == 200).all()
    assert (out[:4, 4:] == 200 * DIMMED).all()
    assert (out[4:, 4:] == 200).all()


def test_heat_map_is_brightest_where_the_value_is_highest():
    frames = np.full((2, 8, 8, 3), 100, dtype=np.uint8)
    values = np.array([[[0.0, 0.1], [0.2, np.nan]], [[0.3, 0.4], [0.5, 0.9]]])
    out = heated(frames, values).astype(int).sum(-1)
    assert out[1, 6, 6] > out[1, 0, 6] > out[0, 0, 0]
    assert (heated(frames, values)[0, 6, 6] == 100).all()  # that patch has no value
    assert np.array_equal(heated(frames, values * 7), heated(frames, values))
    assert np.isfinite(heated(frames, np.full((2, 2, 2), np.nan)) * 1.0).all()


def test_bad_input():
    with pytest.raises(InputError, match="do not fit"):
        dimmed(np.zeros((2, 8, 8, 3), dtype=np.uint8), np.ones((1, 2, 2), dtype=bool))
    with pytest.raises(InputError, match="do not fit"):
        heated(np.zeros((1, 8, 8, 3), dtype=np.uint8), np.ones((1, 4)))


def tokens():
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(1, 3, 16, generator=generator)
    return VisualTokens(
        features=torch.randn(1, 3, 16, 2, generator=generator),
        grid=(4, 4),
        scores={"cls_attention": scores, "cls_attention@0": scores},
    )


def ranking_of(*reducers, given=None):
    return ranking_map(nn.ModuleList(registry.build("reducer", reducer) for reducer in reducers), given or tokens())


@pytest.mark.parametrize("reducer", ["fastervlm:keep=5", "hired:keep=5", "video_budget:keep=5,score=cls_attention"])
def test_what_was_kept_and_why(reducer):
    before = tokens()
    after = registry.build("reducer", reducer)(before)
    kept = kept_patches(after)
    assert kept.sum() == 15
    name, ranking = ranking_of("random:keep=9", reducer)
    assert name == "cls_attention"
    assert np.array_equal(ranking, before.scores["cls_attention"].view(3, 4, 4).numpy())
    if not reducer.startswith("video_budget"):
        for frame, values in zip(kept, ranking, strict=True):
            assert values[frame].min() > values[~frame].max()


def test_without_a_ranking():
    assert ranking_of("random:keep=4", "uniform:keep=2") is None
    assert ranking_of("video_budget:keep=4")[0] == "change"
    assert ranking_of("fastervlm:keep=4", given=tokens().replace(grid=None)) is None
    assert kept_patches(tokens().replace(grid=None)) is None
    merged = tokens().take(torch.tensor([[[0, 5]] * 3])).replace(size=torch.tensor([[[1.0, 15.0]] * 3]))
    name, sizes = ranking_of("diffrate:keep=2", given=merged)
    assert name == "patches in a token"
    assert sizes[0, 1, 1] == 15
    assert np.isnan(sizes[0, 3, 3])
