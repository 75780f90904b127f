"""HoliTom against a plain computation token by token, and what must hold of its numbers, windows and places."""

import math

import pytest
import torch
from nearness import assert_near
from plain_merging import gain, most_saved

from mmllm import registry
from mmllm.errors import ConfigError, InputError
from mmllm.pruning.density_peaks import density_peaks
from mmllm.tokens import Tiling, VisualTokens


def video(frames=6, tokens=12, width=6, seed=0, batch=1, stays=0.8):
    """Random tokens, of which a share stays much as it was one frame before."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, frames, tokens, width, generator=generator)
    stay = torch.rand(batch, frames, tokens, generator=generator) < stays
    for frame in range(1, frames):
        old = features[:, frame - 1] + 0.2 * features[:, frame]
        features[:, frame] = torch.where(stay[:, frame].unsqueeze(-1), old, features[:, frame])
    attention = torch.rand(batch, frames, tokens, generator=generator)
    return VisualTokens(features=features, grid=(3, 4), scores={"mean_attention": attention})


def reducer(text):
    return registry.build("reducer", text)


def clustered(rows, clusters, center_weight):
    """Center (number of a row) -> its token, of rows n D."""
    centers, cluster = (part[0].tolist() for part in density_peaks(rows.unsqueeze(0), clusters))
    tokens = {}
    for number, center in enumerate(centers):
        own = [i for i, joined in enumerate(cluster) if joined == number]
        others = [i for i in own if i != center]
        if center_weight is None or not others:
            tokens[center] = rows[own].mean(0)
        else:
            tokens[center] = center_weight * rows[center] + (1 - center_weight) * rows[others].mean(0)
    return tokens


def plain(features, attention, ratio, threshold, dynamic="cluster", center_weight=None):
    """(frame, place) -> token, by the card's rules; the windows come from all ways to cut the video."""
    t, n, _ = features.shape
    static = torch.cosine_similarity(features[1:], features[:-1], dim=-1) > threshold
    assert t <= 9
    saved = most_saved(static.numpy(), 1024)
    windows = reducer_windows(static, saved)
    ratio = min(1.0, ratio / (1 - saved / (t * n)))
    kept = {}
    for first, last in windows:
        still = static[first:last].all(0) if last > first else torch.zeros(n, dtype=torch.bool)
        places = still.nonzero()[:, 0]
        count = round(len(places) * ratio) or int(len(places) == n)
        if len(places) and count:
            means = features[first : last + 1, places].mean(0)
            kept |= {(first, int(places[c])): token for c, token in clustered(means, count, center_weight).items()}
        others = (~still).nonzero()[:, 0]
        for frame in range(first, last + 1) if len(others) else ():
            count = math.ceil(len(others) * ratio)
            if dynamic == "attention":
                best = others[attention[frame, others].argsort(descending=True)[:count]]
                kept |= {(frame, int(place)): features[frame, place] for place in best}
            else:
                tokens = clustered(features[frame, others], count, center_weight)
                kept |= {(frame, int(others[c])): token for c, token in tokens.items()}
    return kept


def reducer_windows(static, saved):
    """A cut that saves so many tokens, found by trying; of equal ones the one with the shortest last windows."""
    frames = len(static) + 1
    best = {0: (0, [])}
    for last in range(frames):
        options = [(best[last][0], [*best[last][1], (last, last)])]
        for first in range(last - 1, -1, -1):
            options.append((best[first][0] + gain(static.numpy(), first, last), [*best[first][1], (first, last)]))
        best[last + 1] = max(options, key=lambda option: option[0])  # the first of equals
    assert best[frames][0] == saved
    return best[frames][1]


@pytest.mark.parametrize("options", ["", ",center_weight=0.6", ",dynamic=attention", ",threshold=0.95"])
@pytest.mark.parametrize("frames", [1, 2, 7, 9])
@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.7])
def test_tokens_are_those_of_the_plain_computation(frames, ratio, options):
    tokens = video(frames, seed=frames)
    part = reducer(f"holitom:ratio={ratio}{options}")
    reduced, config = part(tokens), part.config
    expected = plain(
        tokens.features[0], tokens.scores["mean_attention"][0], ratio, config.threshold, config.dynamic,
        config.center_weight,
    )  # fmt: skip
    kept = {
        (frame, int(place)): reduced.features[0, frame, slot]
        for frame in range(frames)
        for slot, place in enumerate(reduced.index[0, frame])
        if reduced.mask[0, frame, slot]
    }
    assert kept.keys() == expected.keys()
    for at, token in expected.items():
        assert_near(kept[at], token)
    assert len(kept) <= part.kept_tokens(12, frames)


def test_a_video_that_stands_still_is_one_window():
    frame = torch.randn(1, 1, 12, 6, generator=torch.Generator().manual_seed(3))
    reduced = reducer("holitom:ratio=0.1")(VisualTokens(features=frame.expand(1, 8, 12, 6).clone(), grid=(3, 4)))
    assert reduced.mask[0].sum(-1).tolist() == [10, *[0] * 7]  # round(12 * 0.1 * 8), all in the first frame
    short = reducer("holitom:ratio=0.1")(VisualTokens(features=frame[..., :2, :].expand(1, 2, 2, 6).clone(), grid=None))
    assert short.mask[0].sum(-1).tolist() == [1, 0]  # something of every window remains


def test_what_remains_is_the_weighted_sum_that_it_says():
    tokens = video(7, seed=5)
    part = reducer("holitom:ratio=0.3")
    reduced, groups = part(tokens), part.groups(tokens)
    sums = torch.zeros_like(reduced.features)
    for frame in range(7):
        for token in range(12):
            target, slot = int(groups.frame[0, frame, token]), int(groups.owner[0, frame, token])
            if slot >= 0:
                assert target <= frame
                sums[0, target, slot] += groups.weight[0, frame, token] * tokens.features[0, frame, token]
    assert_near(sums[reduced.mask], reduced.features[reduced.mask])


def test_identity_half_precision_and_batches():
    tokens = video(6, batch=3)
    assert reducer("holitom:ratio=1")(tokens) is tokens
    assert reducer("holitom:ratio=1").groups(tokens) is None
    part = reducer("holitom:ratio=0.3")
    half = tokens.replace(features=tokens.features.half())
    assert torch.equal(part(half).index, part(half.replace(features=half.features.float())).index)
    assert part(half).features.dtype == torch.float16
    order = torch.tensor([2, 0, 1])
    turned = part(video(6, batch=3).replace(features=tokens.features[order]))
    straight = part(tokens)
    for row, source in enumerate(order.tolist()):
        assert torch.equal(turned.index[row][turned.mask[row]], straight.index[source][straight.mask[source]])
        assert_near(turned.features[row][turned.mask[row]], straight.features[source][straight.mask[source]])


def test_padding_frames_count_for_nothing():
    tokens = video(6)
    mask = torch.ones(1, 6, 12, dtype=torch.bool)
    mask[0, 4:] = False
    part = reducer("holitom:ratio=0.3")
    padded, alone = part(tokens.replace(mask=mask)), part(VisualTokens(features=tokens.features[:, :4], grid=(3, 4)))
    assert_near(padded.features[0][padded.mask[0]], alone.features[0][alone.mask[0]])
    assert not bool(padded.mask[0, 4:].any())
    nothing = part(tokens.replace(mask=torch.zeros_like(mask)))
    assert not bool(nothing.mask.any())


def test_times_of_frames_stay():
    tokens = video(6).replace(times_s=torch.arange(6.0).expand(1, 6))
    reduced = reducer("holitom:ratio=0.3")(tokens)
    assert torch.equal(reduced.times_s, tokens.times_s)
    assert reduced.shape[1] == 6


def test_bad_input():
    tokens, part = video(3), reducer("holitom:ratio=0.3")
    with pytest.raises(InputError, match="finite"):
        part(tokens.replace(features=tokens.features * torch.nan))
    with pytest.raises(InputError, match="compares frames in time"):
        part(tokens.replace(tiling=(Tiling(rows=1, cols=1, height=8, width=8),)))
    ragged = tokens.mask.clone()
    ragged[0, 1, 4:] = False
    with pytest.raises(InputError, match="the same number of tokens"):
        part(tokens.replace(mask=ragged))
    with pytest.raises(InputError, match="the same places"):
        part(reducer("random:keep=6")(tokens))
    with pytest.raises(InputError, match="mean_attention"):
        reducer("holitom:dynamic=attention")(tokens.replace(scores={}))
    for wrong in ("ratio=0", "ratio=1.5", "ratio=nan", "threshold=2", "max_window=0", "center_weight=1", "dynamic=x"):
        with pytest.raises(ConfigError, match=wrong.partition("=")[0]):
            reducer(f"holitom:{wrong}")
