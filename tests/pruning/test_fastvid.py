"""FastVID against a plain computation token by token, and what must hold of its numbers, segments and places."""

from itertools import pairwise

import pytest
import torch
from nearness import assert_near
from plain_merging import plain_order

from mmllm import registry
from mmllm.errors import ConfigError, InputError
from mmllm.pruning.fastvid import context_counts
from mmllm.tokens import Tiling, VisualTokens


def video(frames=10, tokens=20, width=6, seed=0, batch=1):
    """Random tokens; neighbouring frames are more or less alike."""
    generator = torch.Generator().manual_seed(seed)
    scene = torch.randn(batch, frames, 1, width, generator=generator).cumsum(1)
    features = scene + torch.randn(batch, frames, tokens, width, generator=generator)
    attention = torch.rand(batch, frames, tokens, generator=generator)
    return VisualTokens(features=features, grid=(4, 5), scores={"mean_attention": attention})


def reducer(text):
    return registry.build("reducer", text)


def plain_segments(features, threshold, least):
    """First and last frame of each: cut at the smallest similarities, `least` - 1 of them, and at all below."""
    means = features.double().mean(1)
    alike = [float(torch.cosine_similarity(a, b, dim=0)) for a, b in pairwise(means)]
    smallest = sorted(range(len(alike)), key=lambda i: alike[i])[: least - 1]
    cuts = sorted({*smallest, *(i for i, value in enumerate(alike) if value < threshold)})
    return list(zip([0, *(cut + 1 for cut in cuts)], [*cuts, len(features) - 1], strict=True))


def plain(features, attention, ratio, center_weight=0.6, threshold=0.9, least=8):
    """(frame, place) -> token, by the card's rules; everything fits in every fourth frame."""
    t, n, _ = features.shape
    budget = int(n * ratio)
    context = int(budget * 0.4)
    kept, rest = {}, []
    for frame in range(t):
        best = attention[frame].argsort(descending=True)[: budget - context].tolist()
        kept |= {(frame, place): features[frame, place] for place in best}
        rest.append([place for place in range(n) if place not in best])
    for first, last in plain_segments(features, threshold, least):
        anchors = [frame for frame in range(last, first - 1, -1) if (last - frame) % 4 == 0]
        share, over = divmod((last - first + 1) * context, len(anchors))
        for number, anchor in enumerate(anchors):
            order = plain_order(features[anchor, rest[anchor]], 4)
            centers = [(anchor, rest[anchor][i]) for i in order[: share + (number < over)]]
            members = {center: [] for center in centers}
            for at in ((frame, place) for frame in range(first, last + 1) for place in rest[frame]):
                alike = {c: float(torch.cosine_similarity(features[at], features[c], dim=0)) for c in centers}
                members[at if at in members else max(alike, key=alike.get)].append(features[at])
            for center, own in members.items():
                weight = max(center_weight, 1 / (len(own) + 1))
                kept[center] = weight * features[center] + (1 - weight) * torch.stack(own).mean(0)
    return kept


@pytest.mark.parametrize("options", [{}, {"center_weight": 0.1}, {"least_segments": 1, "segment_threshold": 0.5}])
@pytest.mark.parametrize("frames", [1, 2, 9, 14])
@pytest.mark.parametrize("ratio", [0.15, 0.3, 0.4])
def test_tokens_are_those_of_the_plain_computation(frames, ratio, options):
    tokens = video(frames, seed=frames)
    part = registry.build("reducer", {"name": "fastvid", "ratio": ratio, **options})
    config = part.config
    expected = plain(
        tokens.features[0], tokens.scores["mean_attention"][0], ratio, config.center_weight, config.segment_threshold,
        config.least_segments,
    )  # fmt: skip
    reduced = part(tokens)
    kept = {
        (frame, int(place)): reduced.features[0, frame, slot]
        for frame in range(frames)
        for slot, place in enumerate(reduced.index[0, frame])
        if reduced.mask[0, frame, slot]
    }
    assert kept.keys() == expected.keys()
    for at, token in expected.items():
        assert_near(kept[at], token)


@pytest.mark.parametrize("ratio", [0.01, 0.1, 0.26, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("frames", [1, 3, 8, 17])
def test_the_number_is_exact_and_known_beforehand(ratio, frames):
    tokens = video(frames, batch=2, seed=frames)
    part = reducer(f"fastvid:ratio={ratio},least_segments=2")
    reduced = part(tokens)
    expected = max(1, int(20 * ratio + 1e-9)) * frames
    assert reduced.mask.sum((1, 2)).tolist() == [expected, expected]
    assert part.kept_tokens(20, frames) == expected
    for frame in range(frames):
        kept = reduced.index[0, frame][reduced.mask[0, frame]].tolist()
        assert kept == sorted(set(kept))


def test_context_is_in_every_fourth_frame_from_the_end():
    assert context_counts(9, 2, room=20, interval=4) == [6, 0, 0, 0, 6, 0, 0, 0, 6]
    assert context_counts(6, 3, room=20, interval=4) == [0, 9, 0, 0, 0, 9]
    assert context_counts(5, 1, room=20, interval=4) == [2, 0, 0, 0, 3]
    assert context_counts(1, 3, room=20, interval=4) == [3]
    assert context_counts(6, 8, room=20, interval=4) == [0, 16, 0, 16, 0, 16]  # every fourth had no room
    for length in range(1, 14):
        for context in range(9):
            counts = context_counts(length, context, room=9, interval=4)
            assert sum(counts) == length * context
            assert max(counts) <= 9


def test_attention_is_what_counts_without_context_and_its_size_does_not():
    tokens = video(4)
    reduced = reducer("fastvid:ratio=0.25,context=0")(tokens)
    best = tokens.scores["mean_attention"].topk(5).indices.sort(-1).values
    assert torch.equal(reduced.index, best)
    larger = tokens.replace(scores={"mean_attention": 1000 * tokens.scores["mean_attention"]})
    part = reducer("fastvid:ratio=0.25")
    assert torch.equal(part(larger).features, part(tokens).features)


def test_what_remains_is_the_weighted_sum_that_it_says():
    tokens = video(14, seed=5)
    part = reducer("fastvid:ratio=0.3,least_segments=1,segment_threshold=-1")  # one segment, four frames with centers
    reduced, groups = part(tokens), part.groups(tokens)
    assert groups.owner.shape == (1, 14, 20, 4)
    sums = torch.zeros_like(reduced.features)
    for frame, token, part_number in (groups.owner[0] >= 0).nonzero().tolist():
        at = (0, frame, token, part_number)
        sums[0, groups.frame[at], groups.owner[at]] += groups.weight[at] * tokens.features[0, frame, token]
    assert_near(sums[reduced.mask], reduced.features[reduced.mask])


def test_identity_half_precision_and_batches():
    tokens = video(9, batch=3)
    assert reducer("fastvid:ratio=1")(tokens) is tokens
    assert reducer("fastvid:ratio=1").groups(tokens) is None
    part = reducer("fastvid:ratio=0.3")
    half = tokens.replace(features=tokens.features.half())
    assert torch.equal(part(half).index, part(half.replace(features=half.features.float())).index)
    assert part(half).features.dtype == torch.float16
    order = torch.tensor([2, 0, 1])
    scores = {"mean_attention": tokens.scores["mean_attention"][order]}
    turned, straight = part(tokens.replace(features=tokens.features[order], scores=scores)), part(tokens)
    for row, source in enumerate(order.tolist()):
        assert torch.equal(turned.index[row][turned.mask[row]], straight.index[source][straight.mask[source]])
        assert_near(turned.features[row][turned.mask[row]], straight.features[source][straight.mask[source]])


def test_padding_frames_count_for_nothing():
    tokens = video(10)
    mask = torch.ones(1, 10, 20, dtype=torch.bool)
    mask[0, 7:] = False
    part = reducer("fastvid:ratio=0.3")
    scores = {"mean_attention": tokens.scores["mean_attention"][:, :7]}
    padded = part(tokens.replace(mask=mask))
    alone = part(VisualTokens(features=tokens.features[:, :7], grid=(4, 5), scores=scores))
    assert_near(padded.features[0][padded.mask[0]], alone.features[0][alone.mask[0]])
    assert not bool(padded.mask[0, 7:].any())
    assert not bool(part(tokens.replace(mask=torch.zeros_like(mask))).mask.any())


def test_bad_input():
    tokens, part = video(3), reducer("fastvid:ratio=0.3")
    with pytest.raises(InputError, match="mean_attention"):
        part(tokens.replace(scores={}))
    with pytest.raises(InputError, match="finite"):
        part(tokens.replace(features=tokens.features * torch.nan))
    with pytest.raises(InputError, match="finite"):
        part(tokens.replace(scores={"mean_attention": tokens.scores["mean_attention"] / 0}))
    with pytest.raises(InputError, match="compares frames in time"):
        part(tokens.replace(tiling=(Tiling(rows=1, cols=1, height=8, width=8),)))
    ragged = tokens.mask.clone()
    ragged[0, 1, 4:] = False
    with pytest.raises(InputError, match="the same number of tokens"):
        part(tokens.replace(mask=ragged))
    for wrong in (
        "ratio=0",
        "ratio=nan",
        "context=2",
        "interval=0",
        "center_weight=-1",
        "segment_threshold=2",
        "least_segments=0",
    ):
        with pytest.raises(ConfigError, match=wrong.partition("=")[0]):
            reducer(f"fastvid:{wrong}")
