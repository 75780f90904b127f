"""Frames that show something new get more of a video's budget; none disappears."""

import pytest
import torch

from mmllm import registry
from mmllm.errors import InputError
from mmllm.tokens import Tiling, VisualTokens


def scene_change(frames=6, cut=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scenes = torch.randn(2, 16, 8, generator=generator)
    features = torch.stack([scenes[0] if t < cut else scenes[1] for t in range(frames)])
    noise = 0.01 * torch.randn(features.shape, generator=generator)
    return VisualTokens(features=(features + noise).unsqueeze(0), grid=(4, 4))


def test_a_cut_gets_the_budget():
    counts = registry.build("reducer", "video_budget:total=30")(scene_change()).mask.sum(-1)[0].tolist()
    assert sum(counts) == 30
    assert counts[0] + counts[3] >= 24
    assert all(counts[t] <= 3 for t in (1, 2, 4, 5))
    assert min(counts) >= 1


def test_a_moving_patch_is_what_is_kept():
    tokens = scene_change(frames=4, cut=9)
    path = (0, 5, 10, 15)
    for t, place in enumerate(path):
        tokens.features[0, t, place] = torch.full((8,), -3.0)
    out = registry.build("reducer", "video_budget:keep=4,least=2")(tokens)
    for t in (1, 2, 3):  # what it moved to, and what it uncovered
        assert {path[t], path[t - 1]} <= set(out.index[0, t][out.mask[0, t]].tolist())


def test_every_frame_keeps_the_least():
    counts = registry.build("reducer", "video_budget:total=20,least=3")(scene_change()).mask.sum(-1)
    assert counts.min() == 3
    with pytest.raises(InputError, match="20 tokens are less than 4 for each of 6 frames"):
        registry.build("reducer", "video_budget:total=20,least=4")(scene_change())


def test_ranked_by_the_encoders_attention():
    tokens = scene_change()
    attention = torch.rand(1, 6, 16, generator=torch.Generator().manual_seed(1))
    reducer = registry.build("reducer", "video_budget:total=30,score=cls_attention")
    assert reducer.scores_needed == ("cls_attention",)
    out = reducer(tokens.replace(scores={"cls_attention": attention}))
    for t in range(6):
        kept = out.index[0, t][out.mask[0, t]]
        assert torch.equal(kept, attention[0, t].topk(len(kept)).indices.sort().values)


def test_what_cannot_be_compared():
    tokens = scene_change()
    reducer = registry.build("reducer", "video_budget:keep=2")
    with pytest.raises(InputError, match="1D tokens"):
        reducer(tokens.replace(grid=None))
    with pytest.raises(InputError, match="tiled"):
        reducer(tokens.replace(tiling=(Tiling(rows=1, cols=5, height=9, width=9),)))
