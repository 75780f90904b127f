from pathlib import Path

import pytest
import torch
from nearness import assert_near
from safetensors.torch import load_file

from mmllm import registry
from mmllm.errors import InputError
from mmllm.paths.slowfast import SlowFastConfig, SlowFastPath, slow_frames
from mmllm.tokens import VisualTokens

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "lita-slowfast.safetensors"
MODES = ("temporal", "spatial", "temporal_spatial", "spatial_pool", "temporal_spatial_pool")


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN)


def path(mode="temporal_spatial_pool", **fields):
    return SlowFastPath(SlowFastConfig(mode=mode, **fields))


def random_tokens(b=2, t=7, grid=(4, 6), d=5):
    return VisualTokens(features=torch.randn(b, t, grid[0] * grid[1], d), grid=grid)


@pytest.mark.parametrize("mode", MODES)
def test_matches_the_original(golden, mode):
    project = registry.build("tokenizer", "linear", in_width=8, out_width=12, grid=(16, 16))
    prefix = "state.model.mm_projector."
    project.load_state_dict({k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)})
    tokens = VisualTokens(features=golden["in.features"], grid=(16, 16))
    sequence = path(mode)(project(tokens))
    assert_near(sequence.embeddings, golden[f"out.{mode}"])
    assert sequence.mask.all()
    pooled_first = project(VisualTokens(features=path(mode)(tokens).embeddings.unsqueeze(1), grid=None))
    assert_near(pooled_first.features[:, 0], sequence.embeddings)


def test_slow_frames_match_the_original_and_repeat_when_there_are_few(golden):
    assert slow_frames(100, 4) == golden["out.slow_frame_indices"].tolist() == [0, 33, 66, 99]
    assert slow_frames(2, 4) == [0, 0, 1, 1]
    assert slow_frames(6, 4) == [0, 2, 3, 5]  # 1.67 and 3.33
    assert slow_frames(3, 5) == [0, 0, 1, 2, 2]  # 0.5 and 1.5 are rounded to even
    with pytest.raises(InputError):
        slow_frames(0, 4)


def test_a_fast_token_depends_on_its_frame_only_and_not_on_the_order_of_patches():
    tokens = random_tokens()
    before = path()(tokens).embeddings
    changed = tokens.features.clone()
    changed[:, 3] += 1
    changed[:, 5] = changed[:, 5].flip(1)
    after = path()(tokens.replace(features=changed)).embeddings
    same = torch.isclose(before, after, atol=1e-6).all(-1)[:, :7]
    assert same.tolist() == [[True, True, True, False, True, True, True]] * 2


def test_a_static_video_has_equal_fast_tokens_and_equal_slow_blocks():
    tokens = random_tokens(t=1)
    still = tokens.replace(features=tokens.features.expand(2, 9, 24, 5), index=None, mask=None)
    sequence = path()(still)
    fast, slow = (sequence.embeddings[:, sequence.block(name)] for name in ("fast", "slow"))
    assert torch.allclose(fast, fast[:, :1].expand_as(fast))
    blocks = slow.unflatten(1, (4, 6))
    assert torch.allclose(blocks, blocks[:, :1].expand_as(blocks))
    as_image = path(image_frames=9)(tokens).embeddings
    torch.testing.assert_close(as_image, sequence.embeddings)


@pytest.mark.parametrize("mode", MODES)
def test_reduced_tokens_average_what_is_left(mode):
    tokens = random_tokens()
    kept = torch.arange(0, 24, 2).expand(2, 7, 12)
    reduced = path(mode)(tokens.take(kept))
    zeroed = torch.zeros_like(tokens.features)
    zeroed[:, :, ::2] = tokens.features[:, :, ::2]
    whole = path(mode)(tokens.replace(features=zeroed))
    assert reduced.blocks == whole.blocks
    if mode != "spatial":
        fast_or_pool = reduced.embeddings[reduced.mask]
        assert torch.isfinite(fast_or_pool).all()
    if mode.startswith("temporal"):
        torch.testing.assert_close(reduced.embeddings[:, :7], whole.embeddings[:, :7] * 2)
    if mode.endswith("spatial"):
        assert reduced.mask[:, -24:].equal((torch.arange(24) % 2 == 0).expand(2, 24))
    if mode.endswith("pool"):
        torch.testing.assert_close(reduced.embeddings[:, -24:], whole.embeddings[:, -24:] * 2)


def test_marking_all_tokens_as_merged_ones_changes_nothing():
    tokens = random_tokens()
    for mode in MODES:
        general = path(mode)(tokens.replace(size=torch.ones(2, 7, 24)))
        assert_near(general.embeddings, path(mode)(tokens).embeddings)


def test_frames_that_pad_a_shorter_video_are_masked_and_never_slow():
    tokens = random_tokens()
    mask = torch.ones(2, 7, 24, dtype=torch.bool)
    mask[1, 4:] = False
    ragged = path()(tokens.replace(mask=mask))
    alone = path()(VisualTokens(features=tokens.features[1:, :4], grid=(4, 6)))
    assert ragged.mask[1].sum() == 4 + 24
    assert_near(ragged.embeddings[1][ragged.mask[1]], alone.embeddings[0])


def test_counts_are_known_beforehand():
    for mode in MODES:
        counts = path(mode).token_counts(7, (4, 6), 24)
        assert tuple(counts.items()) == path(mode)(random_tokens()).blocks
    assert sum(path().token_counts(100, (16, 16), 256).values()) == 356


def test_bad_input_is_named():
    with pytest.raises(InputError, match="3x4 patch grid is not divisible into 2x2"):
        path()(random_tokens(grid=(3, 4)))
    with pytest.raises(InputError, match="1D tokens"):
        path()(VisualTokens(features=torch.zeros(1, 3, 4, 2), grid=None))
    assert path("temporal")(VisualTokens(features=torch.zeros(1, 3, 4, 2), grid=None)).blocks == (("fast", 3),)
    nothing = random_tokens()
    with pytest.raises(InputError, match="no visual token left"):
        path()(nothing.replace(mask=torch.zeros_like(nothing.mask)))
