"""Slow-Fast's tokens: the original's fast tokens, videos of a batch apart, dropped tokens, bad input."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from mmllm import registry
from mmllm.errors import ConfigError, InputError
from mmllm.inference.costs import stage_costs
from mmllm.paths.slowfast_hybrid import frame_groups, sampled_frames
from mmllm.tokens import Tiling, VisualTokens

GOLDEN = Path(__file__).parents[1] / "data" / "slowfast-fast-tokens.safetensors"


def build(**settings):
    return registry.build("path", {"name": "slowfast-hybrid", **settings})


def tokens(*shape, grid=(4, 4), seed=0, **fields):
    generator = torch.Generator().manual_seed(seed)
    return VisualTokens(features=torch.randn(*shape, 6, generator=generator), grid=grid, **fields)


def golden_cases():
    with safe_open(GOLDEN, "pt") as file:
        return json.loads(file.metadata()["config"])["cases"]


@pytest.mark.parametrize("case", golden_cases(), ids=lambda case: f"case{case['case']}")
def test_fast_tokens_are_the_originals(case):
    number, side = case["case"], round(case["tokens_per_frame"] ** 0.5)
    with safe_open(GOLDEN, "pt") as file:
        frames, fast, sampled = (
            file.get_tensor(f"{name}.{number}")
            for name in ("in.visual_tokens", "out.fast_tokens", "out.sampled_frames")
        )
    path = build(
        pool=1,
        sampling_stride=case["temporal_sampling_stride"],
        temporal_stride=case["temporal_stride"],
        spatial_stride=case["spatial_stride"],
        min_fast_frames=case["min_fast_frames"],
    )
    sequence = path(VisualTokens(features=frames.unsqueeze(0), grid=(side, side)))
    torch.testing.assert_close(sequence.embeddings[0], fast, rtol=0, atol=1e-6)
    assert torch.equal(sequence.cross_attention_states[0], frames.flatten(0, 1))  # never sampled
    assert sampled_frames(len(frames), case["temporal_sampling_stride"], case["min_fast_frames"]) == sampled.tolist()
    assert path.token_counts(len(frames), (side, side), side * side) == {"fast": case["n_fast"]}


@given(st.integers(1, 200), st.integers(1, 9), st.integers(1, 40))
def test_groups_cover_the_frames_in_order(frames, stride, least):
    sampled = sampled_frames(frames, stride, least)
    assert sampled == sorted(set(sampled))
    assert len(sampled) >= min(frames, least)
    groups = frame_groups(frames, stride, least)
    assert len(groups) >= min(frames, least)
    middles = [(group.start + group.stop - 1) // 2 for group in groups]
    assert middles == sorted(set(middles))  # so no two fast tokens have one place
    assert all(0 <= group.start < group.stop <= frames for group in groups)


def test_a_frame_is_pooled_only_in_a_video():
    path = build(temporal_stride=2, min_fast_frames=2)
    video, image = tokens(1, 4, 16), tokens(1, 1, 16)
    sequence = path(video)
    means = video.features.unflatten(2, (2, 2, 2, 2)).mean((3, 5)).flatten(2, 3)  # B T 4 D
    torch.testing.assert_close(sequence.cross_attention_states, means.flatten(1, 2))
    torch.testing.assert_close(sequence.embeddings, means.unflatten(1, (2, 2)).mean(2).flatten(1, 2))
    assert sequence.frame[0].tolist() == [0] * 4 + [2] * 4
    assert sequence.cross_attention_frame[0].tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    assert sequence.grid == (2, 2)
    assert sequence.place[0].tolist() == [0, 1, 2, 3] * 2
    sequence.check_places()
    assert torch.equal(path(image).embeddings, image.features.flatten(1, 2))
    assert path.token_counts(1, (4, 4), 16) == {"fast": 16}
    assert path.beside_counts(4, (4, 4), 16) == {"slow": 16}


def test_videos_of_a_batch_do_not_change_each_other():
    path = build(sampling_stride=2, temporal_stride=2, min_fast_frames=2)
    together = tokens(2, 7, 16)
    mask = torch.ones(2, 7, 16, dtype=torch.bool)
    mask[1, 5:] = False
    sequence = path(together.replace(mask=mask))
    for video, frames in ((0, 7), (1, 5)):
        alone = path(VisualTokens(features=together.features[video : video + 1, :frames], grid=(4, 4)))
        torch.testing.assert_close(sequence.embeddings[video][sequence.mask[video]], alone.embeddings[0])
        torch.testing.assert_close(sequence.beside(video), alone.cross_attention_states[0])
        assert sequence.frame[video][sequence.mask[video]].tolist() == alone.frame[0].tolist()
        assert not sequence.embeddings[video][~sequence.mask[video]].any()


def test_dropped_patches_are_left_out_of_averages():
    path, whole = build(temporal_stride=2, min_fast_frames=1), tokens(1, 2, 16)
    left = torch.tensor([0, 1, 4, 5, 10]).expand(1, 2, 5)  # a whole pool, and one patch of another
    sequence = path(whole.take(left))
    of_frames = whole.features[:, :, [0, 1, 4, 5]].mean(2)
    torch.testing.assert_close(sequence.beside(0)[::2], of_frames[0])
    torch.testing.assert_close(sequence.beside(0)[1::2], whole.features[0, :, 10])
    assert sequence.mask.tolist() == [[True, False, False, True]]
    torch.testing.assert_close(sequence.embeddings[0, 0], of_frames[0].mean(0))


def test_questions_repeat_the_tokens_beside_the_sequence():
    sequence = build()(tokens(2, 4, 16))
    chosen = sequence.select(torch.tensor([1, 1, 0]))
    assert torch.equal(chosen.cross_attention_states, sequence.cross_attention_states[[1, 1, 0]])
    assert torch.equal(chosen.cross_attention_frame, sequence.cross_attention_frame[[1, 1, 0]])


def test_ordered_tokens_without_a_grid_need_no_pool():
    line = tokens(1, 4, 5, grid=None)
    sequence = build(pool=1, temporal_stride=2, min_fast_frames=2)(line)
    torch.testing.assert_close(sequence.embeddings[0, :5], line.features[0, :2].mean(0))
    assert sequence.grid is None
    with pytest.raises(InputError, match="1D tokens have no patch grid to pool: set pool=1,spatial_stride=1"):
        build()(line)


@pytest.mark.parametrize("frames", [64, 96, 128])
def test_counts_of_the_published_settings(frames):
    settings = {64: {}, 96: {"temporal_stride": 6}, 128: {"sampling_stride": 2}}[frames]
    costs = stage_costs("convnext", [], "mlp", {"name": "slowfast-hybrid", **settings}, frames)
    assert costs[-1]["tokens"] == 1296
    assert costs[-1]["detail"] == f"1296 fast; {frames * 81:,} slow beside the sequence"


def test_bad_input():
    with pytest.raises(InputError, match="a 1x1 patch grid is smaller than a 2x2 pool"):
        build()(tokens(1, 2, 1, grid=(1, 1)))
    with pytest.raises(InputError, match="a 2x2 patch grid is smaller than a 3x3 pool"):
        build(spatial_stride=3).token_counts(8, (4, 4), 16)
    with pytest.raises(InputError, match="tiles of an image"):
        build()(tokens(1, 2, 16, tiling=(Tiling(rows=1, cols=1, height=9, width=9),)))
    with pytest.raises(InputError, match="no visual token left"):
        build()(tokens(1, 2, 16, mask=torch.zeros(1, 2, 16, dtype=torch.bool)))
    with pytest.raises(InputError, match="at least 1 frame, not 0"):
        sampled_frames(0, 2, 4)
    with pytest.raises(ConfigError, match="temporal_stride = 0: must be at least 1"):
        build(temporal_stride=0)
