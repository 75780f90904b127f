"""A count that a reducer gives for a shape is what remains of any video of that shape, whatever it shows."""

import pytest
import torch

from mmllm import registry
from mmllm.interfaces import EncoderStage, LlmStage
from mmllm.tokens import VisualTokens

SHAPES = [(1, (4, 4)), (2, (4, 6)), (3, (5, 5)), (9, (4, 4)), (16, (3, 4))]
EACH = {
    "random": ["keep=3", "ratio=0.3", "total=17"],
    "uniform": ["keep=3", "ratio=0.3", "total=17"],
    "fastervlm": ["keep=3", "ratio=0.3", "total=17"],
    "hired": ["keep=3", "ratio=0.3", "total=17"],
    "visionzip": ["ratio=0.3", "dominant=3,contextual=2", "ratio=1"],
    "vispruner": ["keep=3", "ratio=0.3", "total=17"],
    "divprune": ["keep=3", "ratio=0.3", "total=17"],
    "cdpruner": ["relevance=none,keep=3", "relevance=none,ratio=0.3"],
    "pool": ["stride=2", "stride=2,mode=max", "stride=3", "stride=1"],
}
"""Reducers that know the number of every frame."""
WHOLE = {
    "evs": ["ratio=0.3", "rate=0.7", "ratio=0.05", "ratio=0.3,least=2"],
    "video_budget": ["ratio=0.3", "keep=3", "total=17"],
    "vidcom2": ["ratio=0.3", "ratio=0.05", "ratio=0.9"],
    "fastvid": ["ratio=0.3", "ratio=0.1", "ratio=0.5,context=1", "ratio=1,interval=1"],
}
"""Reducers that know the number of the video."""
NEITHER = [
    "hired:ratio=0.3,spatial_budget=0.2",
    "vidcom2:ratio=0.3,exact=false",
    "flashvid:ratio=0.5,least_segments=1",
    "holitom",
]


def video(kind, frames, grid, seed):
    """Features of noise, of a scene that stands still, or of one that jumps, with every score that a reducer reads."""
    generator = torch.Generator().manual_seed(seed)
    count = grid[0] * grid[1]
    features = torch.randn(1, frames, count, 16, generator=generator)
    if kind == "still":
        features = features[:, :1].expand(1, frames, count, 16).clone()
    if kind == "jump":
        features[:, : frames // 2] = features[:, :1]
    scores = {
        name: torch.rand(1, frames, count, generator=generator).softmax(-1)
        for name in ("cls_attention", "cls_attention@0", "mean_attention", "mean_attention@0")
    }
    scores["keys"] = torch.randn(1, frames, count, 8, generator=generator)
    times_s = torch.arange(frames).double()[None]
    return VisualTokens(features=features, grid=grid, times_s=times_s, scores=scores)


def reducer_of(name, settings):
    return registry.build("reducer", f"{name}:{settings}")


@pytest.mark.parametrize("kind", ["noise", "still", "jump"])
@pytest.mark.parametrize(("frames", "grid"), SHAPES)
def test_the_count_is_what_remains(kind, frames, grid):
    tokens = grid[0] * grid[1]
    for name, settings in {**EACH, **WHOLE}.items():
        for setting in settings:
            reducer = reducer_of(name, setting)
            expected = reducer.counts_by_shape(tokens, frames, grid)
            left = reducer(video(kind, frames, grid, seed=frames)).mask[0].sum(-1).tolist()
            assert (left if isinstance(expected, list) else sum(left)) == expected, (name, setting)
            assert isinstance(expected, list) == (name in EACH)
            assert sum(left) <= reducer.kept_tokens(tokens, frames)


@pytest.mark.parametrize("text", NEITHER)
def test_a_count_that_the_video_decides_is_not_given(text):
    reducer = registry.build("reducer", text)
    assert reducer.counts_by_shape(16, 8, (4, 4)) is None
    counts = {int(reducer(video(kind, 8, (4, 4), seed)).mask.sum()) for kind in ("noise", "still") for seed in range(4)}
    assert len(counts) > 1  # and it is true: videos of one shape differ


def test_squares_of_a_grid_with_holes_are_not_counted():
    assert reducer_of("pool", "stride=2").counts_by_shape(9, 2, (4, 4)) is None
    assert reducer_of("pool", "stride=2").counts_by_shape(9, 2, None) is None


def test_every_reducer_in_front_of_the_llm_is_in_one_of_the_lists():
    outside = {"diffrate", "prefix"}  # inside the encoder; for 1D tokens, with the budget that `random` has
    names = {
        name
        for name, part in registry.parts("reducer").items()
        if not issubclass(part.cls, (LlmStage, EncoderStage)) and name not in outside
    }
    assert names == {*EACH, *WHOLE, *(text.partition(":")[0] for text in NEITHER)}
    assert registry.build("reducer", "prefix:keep=3").counts_by_shape(16, 2, None) == [3, 3]
