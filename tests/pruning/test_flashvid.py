"""FlashVID: what the recorded reference keeps and merges, numbers of tokens, and the corrected means."""

import json
from pathlib import Path

import pytest
import torch
from nearness import assert_near
from safetensors import safe_open
from safetensors.torch import load_file

from mmllm import registry
from mmllm.errors import ConfigError, InputError
from mmllm.pruning.flashvid import FlashVidConfig, FlashVidReducer, roots, segment_lengths, selection
from mmllm.tokens import Tiling, VisualTokens

FILE = Path(__file__).resolve().parents[1] / "data" / "modern-flashvid.safetensors"
GOLDEN = load_file(FILE)
with safe_open(FILE, "pt") as opened:
    CASES = json.loads(opened.metadata()["config"])["cases"]
METHODS = {"attn_div": "attention", "attn_div_v2": "attention-and-event"}


def config_of(case):
    recorded = CASES[case]
    return FlashVidConfig(
        ratio=recorded["retention_ratio"],
        expansion=recorded["expansion"],
        alpha=recorded["alpha"],
        method=METHODS[recorded["method"]],
        segments=recorded["do_segment"],
        segment_threshold=recorded["segment_threshold"],
        least_segments=recorded["min_segment_num"],
        merge_threshold=recorded["temporal_threshold"],
        released=True,
    )


def video(features, attention):
    return VisualTokens(features=features, grid=None, scores={"mean_attention": attention})


def random_video(frames, tokens, width=8, seed=0, batch=1):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, frames, tokens, width, generator=generator)
    return video(features, torch.rand(batch, frames, tokens, generator=generator))


@pytest.mark.parametrize("case", CASES)
def test_recorded(case):
    features, attention = GOLDEN[f"in.{case}.tokens"], GOLDEN[f"in.{case}.attention"]
    config, count = config_of(case), features.shape[1]
    assert config.counts(count) == (CASES[case]["per_frame_selected"], CASES[case]["per_frame_merged"])
    assert segment_lengths(features, config) == GOLDEN[f"out.{case}.segments"].tolist()
    alone = selection(features, attention, config.counts(count)[0], config.method)
    expected = torch.zeros_like(alone).scatter(1, GOLDEN[f"out.{case}.selected_alone"], True)
    assert torch.equal(alone, expected)
    reduced = FlashVidReducer(config)(video(features[None], attention[None]))
    places = (torch.arange(len(features)).unsqueeze(-1) * count + reduced.index[0])[reduced.mask[0]]
    assert torch.equal(places, GOLDEN[f"out.{case}.places"])
    assert_near(reduced.features[0][reduced.mask[0]], GOLDEN[f"out.{case}.tokens"])


def test_a_chain_of_equal_tokens_becomes_their_mean():
    """One token that stays the same in direction through four frames; the released code divides its sum wrongly."""
    direction = torch.tensor([1.0, 0.0, 0.0])
    features = torch.stack([size * direction for size in (1.0, 2.0, 3.0, 4.0)]).unsqueeze(1)  # 4 frames of 1 token
    none = torch.zeros(4, 1, dtype=torch.bool)
    for released, divisor in ((False, 4.0), (True, 2.0)):
        root, size = roots(features, none, 0, FlashVidConfig(released=released))
        assert root[:, 0].tolist() == [0, 0, 0, 0]
        assert float(size[0, 0]) == divisor


@pytest.mark.parametrize("frames", [1, 5, 12])
def test_what_remains_is_the_weighted_sum_that_it_says(frames):
    tokens = random_video(frames, 16, seed=frames)
    part = registry.build("reducer", "flashvid:ratio=0.3,merge_threshold=0.2,least_segments=2")
    reduced, groups = part(tokens), part.groups(tokens)
    sums = torch.zeros_like(reduced.features)
    for frame in range(frames):
        for token in range(16):
            target, slot = int(groups.frame[0, frame, token]), int(groups.owner[0, frame, token])
            if slot >= 0:
                sums[0, target, slot] += groups.weight[0, frame, token] * tokens.features[0, frame, token]
    assert_near(sums[reduced.mask], reduced.features[reduced.mask])
    with pytest.raises(ConfigError, match="counts some tokens twice"):
        registry.build("reducer", "flashvid:ratio=0.3,released=true").groups(tokens)


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.5])
def test_numbers_stay_below_what_is_declared(ratio):
    part = registry.build("reducer", f"flashvid:ratio={ratio}")
    for seed, frames in enumerate((1, 2, 9, 20)):
        reduced = part(random_video(frames, 16, seed=seed))
        assert int(reduced.mask.sum()) <= part.kept_tokens(16, frames)
        assert bool(reduced.mask.any(-1).all())  # no frame disappears
        for frame in range(frames):
            kept = reduced.index[0, frame][reduced.mask[0, frame]].tolist()
            assert kept == sorted(set(kept))


def test_equal_frames_are_one_segment_unless_more_are_asked_for():
    features = torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(1)).expand(10, 6, 4)
    assert segment_lengths(features, FlashVidConfig(least_segments=1)) == [10]
    assert len(segment_lengths(features, FlashVidConfig())) == 8
    assert segment_lengths(features[:3], FlashVidConfig()) == [1, 1, 1]


def test_all_tokens_stay_at_a_full_budget_and_videos_do_not_matter_to_each_other():
    tokens = random_video(4, 9, batch=2)
    assert registry.build("reducer", "flashvid:ratio=1")(tokens) is tokens
    part = registry.build("reducer", "flashvid:ratio=0.3")
    both, alone = part(tokens), part(video(tokens.features[1:], tokens.scores["mean_attention"][1:]))
    assert_near(both.features[1][both.mask[1]], alone.features[0][alone.mask[0]])


def test_padding_frames_count_for_nothing():
    tokens = random_video(5, 9)
    mask = torch.ones(1, 5, 9, dtype=torch.bool)
    mask[0, 3:] = False
    part = registry.build("reducer", "flashvid:ratio=0.3")
    padded = part(tokens.replace(mask=mask))
    alone = part(video(tokens.features[:, :3], tokens.scores["mean_attention"][:, :3]))
    assert_near(padded.features[0][padded.mask[0]], alone.features[0][alone.mask[0]])
    assert not bool(padded.mask[0, 3:].any())


def test_bad_input():
    tokens = random_video(3, 6)
    part = registry.build("reducer", "flashvid:ratio=0.3")
    with pytest.raises(InputError, match="mean_attention"):
        part(tokens.replace(scores={}))
    with pytest.raises(InputError, match="finite"):
        part(tokens.replace(features=tokens.features * torch.nan))
    ragged = tokens.mask.clone()
    ragged[0, 1, 4:] = False
    with pytest.raises(InputError, match="the same number of tokens"):
        part(tokens.replace(mask=ragged))
    with pytest.raises(InputError, match="compares frames in time"):
        part(tokens.replace(tiling=(Tiling(rows=1, cols=1, height=8, width=8),)))
    for wrong in (
        "ratio=0",
        "expansion=0.5",
        "alpha=2",
        "least_segments=0",
        "merge_threshold=3",
        "segment_threshold=2",
    ):
        with pytest.raises(ConfigError, match=wrong.partition("=")[0]):
            registry.build("reducer", f"flashvid:{wrong}")
