"""Scenes of a video: the published cuts, windows that cover each frame once, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from mmllm.errors import InputError
from mmllm.modeling.scenes import frame_similarity
from mmllm.paths.scenes import boundaries_of, cut, most_windows, segment, spread
from mmllm.tokens import VisualTokens

GOLDEN = Path(__file__).parents[1] / "data" / "tdc-segment.safetensors"


@pytest.mark.parametrize("case", "abcdefg")
def test_cuts_are_the_published_ones(case):
    with safe_open(GOLDEN, "pt") as file:
        config = json.loads(file.metadata()["config"])
        features = file.get_tensor(f"in.{case}.features")
        expected = {
            name: file.get_tensor(f"out.{case}.{name}").tolist()
            for name in ("selected_frames", "boundaries", "segment_sizes", "chunks")
        }
    scenes = segment(
        features,
        cuts=config["cases"][case]["max_num_segments"],
        window=config["chunk"],
        most_frames=config["max_frames"],
    )
    assert scenes.read == expected["selected_frames"]
    assert scenes.boundaries == expected["boundaries"]
    assert scenes.sizes == expected["segment_sizes"]
    assert [list(window) for window in scenes.windows] == expected["chunks"]


@pytest.mark.parametrize(("frames", "cuts", "window"), [(1, 24, 8), (25, 24, 8), (26, 24, 8), (224, 24, 8), (40, 5, 3)])
def test_windows_cover_each_frame_once_and_stay_inside_a_scene(frames, cuts, window):
    scenes = segment(torch.randn(frames, 2, 4), cuts=cuts, window=window)
    assert scenes.boundaries == sorted(set(scenes.boundaries))
    assert sum(scenes.sizes) == frames
    covered = [first + i for first, count in scenes.windows for i in range(count)]
    assert covered == list(range(frames))
    assert len(scenes.windows) <= most_windows(frames, cuts, window)
    for first, count in scenes.windows:
        assert count <= window
        assert not set(range(first, first + count - 1)) & set(scenes.boundaries)


def test_the_largest_number_of_windows_is_reached():
    similarity = torch.ones(59)
    similarity[:24] = 0.0  # 24 scenes of one frame, then one of 36
    assert len(cut(similarity, range(60), cuts=24, window=8).windows) == most_windows(60, 24, 8)


def test_of_equal_similarities_the_first_are_cut():
    assert boundaries_of(torch.full((9,), 0.5), 3) == [0, 1, 2]
    features = torch.ones(30, 2, 4, dtype=torch.float16)  # a still: all similarities are 1
    assert segment(features, cuts=4).boundaries == [0, 1, 2, 3]


def test_frames_are_spread_by_steps_of_float64():
    assert spread(5, 8) == [0, 1, 2, 3, 4]
    chosen = spread(300, 224)
    assert chosen == [int(300 / 224 * i) for i in range(224)]
    assert len(set(chosen)) == 224


@pytest.mark.parametrize(
    ("features", "settings", "message"),
    [
        (torch.zeros(0, 2, 4), {}, "frames = 0"),
        (torch.zeros(3, 2, 4), {"cuts": 0}, "cuts = 0"),
        (torch.zeros(3, 2, 4), {"window": 0}, "window = 0"),
        (torch.full((3, 2, 4), torch.nan), {}, "NaN"),
        (torch.tensor([1.0, torch.inf, 1.0]).view(3, 1, 1).expand(3, 2, 4), {}, "infinite"),
    ],
)
def test_what_cannot_be_cut_is_refused(features, settings, message):
    with pytest.raises(InputError, match=message):
        segment(features, **settings)
    with pytest.raises(InputError, match="NaN"):
        boundaries_of(torch.tensor([0.5, torch.nan]), 1)


def test_similarity_skips_masked_frames_and_reads_only_the_scene_channels():
    features = torch.randn(2, 40, 3, 6)
    mask = torch.ones(2, 40, 3, dtype=torch.bool)
    mask[0, [1, 2, 39]] = False
    tokens = VisualTokens(features=features, grid=None, mask=mask)
    similarity = frame_similarity(tokens, slice(2, 6))
    flat = features[..., 2:].flatten(2)
    expected = torch.nn.functional.cosine_similarity(flat[0, 0], flat[0, 3], dim=0)
    torch.testing.assert_close(similarity[0, 0], expected)
    assert similarity[0, [1, 2, 38, 39]].tolist() == [0, 0, 0, 0]
    torch.testing.assert_close(
        similarity[1, :39], torch.nn.functional.cosine_similarity(flat[1, :-1], flat[1, 1:], dim=1)
    )
    assert similarity[1, 39] == 0


def test_frames_with_other_places_are_compared_by_their_means():
    index = torch.tensor([[[0, 1], [1, 2], [0, 1]]])
    features = torch.randn(1, 3, 2, 5)
    tokens = VisualTokens(features=features, grid=(2, 2), index=index)
    means = features[0].mean(1)
    expected = torch.nn.functional.cosine_similarity(means[:-1], means[1:], dim=1)
    torch.testing.assert_close(frame_similarity(tokens)[0, :2], expected)


def test_features_that_are_not_finite_are_refused_where_they_are_compared():
    features = torch.randn(1, 3, 2, 5)
    features[0, 1, 1, 4] = torch.nan
    with pytest.raises(InputError, match="infinite or NaN"):
        frame_similarity(VisualTokens(features=features, grid=None))
