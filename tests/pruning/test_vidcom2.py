"""VidCom2: scores against a plain loop, exact numbers, equal frames share equally."""

import math

import pytest
import torch
from nearness import assert_near

from mmllm import registry
from mmllm.errors import ConfigError, InputError
from mmllm.pruning.vidcom2 import frame_counts, likeness
from mmllm.tokens import Tiling, VisualTokens


def reducer(text):
    return registry.build("reducer", text)


def random_tokens(*shape, seed=0, **fields):
    features = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return VisualTokens(features=features, grid=None, **fields)


def plain_likeness(features):
    """The card's formulas, number by number."""
    t, n, d = features.shape
    flat = features.reshape(-1, d).double()
    channels = sorted(range(d), key=lambda c: float(((flat[:, c] - flat[:, c].mean()) ** 2).mean()))[: d // 2]
    unit = [row[channels] / row[channels].norm() for row in flat]
    video_mean = sum(unit) / len(unit)

    def kernel(vector, mean):
        squared = float(((vector - mean) ** 2).sum())
        return sum(math.exp(-squared / (2 * width)) for width in (1 / 8, 1 / 4, 1 / 2, 1, 2))

    video, frame = torch.zeros(t, n), torch.zeros(t, n)
    for i in range(t):
        own = unit[i * n : (i + 1) * n]
        frame_mean = sum(own) / n
        for j in range(n):
            video[i, j], frame[i, j] = kernel(own[j], video_mean), kernel(own[j], frame_mean)
    return video, frame


def test_scores_are_the_formulas():
    features = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(3, 5, dtype=torch.bool)
    for ours, plain in zip(likeness(features, mask), plain_likeness(features), strict=True):
        assert_near(ours, plain)


def test_a_frame_keeps_its_least_likely_tokens():
    tokens = random_tokens(1, 4, 10, 8)
    video, frame = plain_likeness(tokens.features[0])
    share = (-video.mean(-1) / 0.01).softmax(-1)
    counts = [max(1, round(min(1.0, 0.3 * (1 + float(s) - 0.25)) * 10)) for s in share]
    reduced = reducer("vidcom2:ratio=0.3,exact=false")(tokens)
    for i, count in enumerate(counts):
        expected = sorted((video + frame)[i].argsort()[:count].tolist())
        assert reduced.index[0, i][reduced.mask[0, i]].tolist() == expected


@pytest.mark.parametrize("ratio", [0.01, 0.1, 0.25, 0.4, 0.77, 1.0])
@pytest.mark.parametrize("frames", [1, 3, 8])
def test_the_number_is_exact_and_known_beforehand(ratio, frames):
    tokens = random_tokens(2, frames, 9, 6, seed=frames)
    part = reducer(f"vidcom2:ratio={ratio}")
    reduced = part(tokens)
    expected = max(frames, int(frames * 9 * ratio + 1e-9))
    assert reduced.mask.sum((1, 2)).tolist() == [expected, expected]
    assert part.kept_tokens(9, frames) == expected
    loose = reducer(f"vidcom2:ratio={ratio},exact=false")
    assert int(loose(tokens).mask.sum((1, 2)).max()) <= loose.kept_tokens(9, frames)


def test_equal_frames_share_equally_and_all_is_all():
    frame = torch.randn(1, 1, 8, 6, generator=torch.Generator().manual_seed(2))
    tokens = VisualTokens(features=frame.expand(1, 4, 8, 6).clone(), grid=None)
    reduced = reducer("vidcom2:ratio=0.5")(tokens)
    assert reduced.mask.sum(-1).tolist() == [[4, 4, 4, 4]]
    assert torch.equal(reducer("vidcom2:ratio=1")(tokens).features, tokens.features)


def test_a_frame_unlike_the_others_gets_more():
    features = torch.randn(1, 1, 8, 6, generator=torch.Generator().manual_seed(2)).expand(1, 5, 8, 6).clone()
    features[0, 3] = torch.randn(8, 6, generator=torch.Generator().manual_seed(9))
    mask = torch.ones(5, 8, dtype=torch.bool)
    counts = frame_counts(likeness(features[0], mask)[0], mask, 0.4)
    assert int(counts.argmax()) == 3
    assert int(counts[3]) > int(counts[0])


def test_videos_of_a_batch_do_not_matter_to_each_other_and_padding_counts_for_nothing():
    tokens = random_tokens(2, 3, 6, 8)
    mask = torch.ones(2, 3, 6, dtype=torch.bool)
    mask[1, 2] = False
    both = reducer("vidcom2:ratio=0.5")(tokens.replace(mask=mask))
    alone = reducer("vidcom2:ratio=0.5")(VisualTokens(features=tokens.features[1:, :2], grid=None))
    kept = both.index[1, :2][both.mask[1, :2]]
    assert torch.equal(kept, alone.index[0][alone.mask[0]])
    assert not bool(both.mask[1, 2].any())


def test_bad_input():
    tokens = random_tokens(1, 2, 6, 4)
    with pytest.raises(InputError, match="finite"):
        reducer("vidcom2")(tokens.replace(features=tokens.features / 0))
    with pytest.raises(ConfigError, match="above 0 and at most 1"):
        reducer("vidcom2:ratio=1.5")
    tiled = tokens.replace(tiling=(Tiling(rows=1, cols=1, height=8, width=8),))
    with pytest.raises(InputError, match="compares frames in time"):
        reducer("vidcom2")(tiled)
