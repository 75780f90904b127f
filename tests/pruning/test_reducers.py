"""What every reducer has in common, checked on all that are registered: a new one is covered by being there."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given as given_any
from hypothesis import settings
from hypothesis import strategies as st

from mmllm import registry
from mmllm.errors import ConfigError, InputError
from mmllm.interfaces import Encoder
from mmllm.pruning.budget import Budget
from mmllm.pruning.needs import require_fit
from mmllm.tokens import VisualTokens

NAMES = [
    name
    for name, part in registry.parts("reducer").items()
    if issubclass(part.config, Budget) and part.cls.layout != "line"  # those for 1D tokens have tests of their own
]


def tokens(batch=2, frames=3, side=4, width=8, seed=0, padded=False):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, frames, side * side)
    mask = None
    if padded:
        mask = torch.ones(shape, dtype=torch.bool)
        mask[0, -1] = False
    attention = torch.rand(shape, generator=generator).softmax(-1)
    first = torch.rand(shape, generator=generator).softmax(-1)
    return VisualTokens(
        features=torch.randn(*shape, width, generator=generator),
        grid=(side, side),
        mask=mask,
        times_s=torch.arange(frames).double().expand(batch, frames),
        scores={"cls_attention": attention, "cls_attention@0": first},
    )


PLAIN = {"cdpruner": {"relevance": "none"}}
"""Settings with which a reducer needs no question, for those that have some."""


def built(name, **budget):
    return registry.build("reducer", {"name": name, **PLAIN.get(name, {}), **budget})


def reduced(name, given, **budget):
    return built(name, **budget)(given)


@pytest.mark.parametrize("name", NAMES)
class TestEveryReducer:
    def test_everything_is_identity(self, name):
        given = tokens()
        for budget in ({"ratio": 1.0}, {"keep": 16}, {"total": 48}, {"total": 10_000}):
            out = reduced(name, given, **budget)
            assert torch.equal(out.features, given.features)
            assert out.complete

    @pytest.mark.parametrize("budget", [{"keep": 5}, {"ratio": 0.3}, {"total": 17}])
    def test_tokens_are_a_subsequence(self, name, budget):
        given = tokens(padded=True)
        out = reduced(name, given, **budget)
        assert out.times_s is given.times_s
        assert torch.equal(out.frame_mask, given.frame_mask)
        for b in range(2):
            for t in range(3):
                kept = out.index[b, t][out.mask[b, t]]
                assert (kept.diff() > 0).all()
                assert torch.equal(out.features[b, t][out.mask[b, t]], given.features[b, t, kept])
                for score in given.scores:
                    assert torch.equal(out.scores[score][b, t][out.mask[b, t]], given.scores[score][b, t, kept])

    @pytest.mark.parametrize("budget", [{"keep": 5}, {"ratio": 0.3}, {"total": 17}, {"total": 47}])
    def test_budget_holds(self, name, budget):
        reducer = built(name, **budget)
        kept = reducer(tokens()).mask.sum(dim=(1, 2))
        assert (kept <= reducer.kept_tokens(16, 3)).all()
        if "total" in budget:
            assert kept.tolist() == [budget["total"]] * 2
        if "keep" in budget:
            assert kept.tolist() == [budget["keep"] * 3] * 2

    def test_a_larger_budget_keeps_more(self, name):
        given = tokens()
        presents = [reduced(name, given, total=total).on_grid()[1] for total in (6, 12, 24, 36, 48)]
        if name in ("video_budget", "vispruner"):  # more of another kind may replace some
            counts = [present.sum().item() for present in presents]
            assert counts == sorted(counts)
        else:
            for fewer, more in pairwise(presents):
                assert (more | ~fewer).all()

    def test_a_video_is_reduced_alike_in_any_batch(self, name):
        both = reduced(name, tokens(), total=17)
        one = tokens()
        alone = reduced(
            name,
            one.replace(
                features=one.features[1:], index=one.index[1:], mask=one.mask[1:], times_s=one.times_s[1:],
                scores={key: value[1:] for key, value in one.scores.items()},
            ),
            total=17,
        )  # fmt: skip
        assert torch.equal(both.index[1][both.mask[1]], alone.index[0][alone.mask[0]])

    def test_padding_takes_no_part(self, name):
        out = reduced(name, tokens(padded=True), total=16)
        assert out.mask.sum(dim=(1, 2)).tolist() == [16, 16]
        assert not out.mask[0, -1].any()

    def test_twice(self, name):
        out = reduced(name, reduced(name, tokens(padded=True), keep=6), keep=3)
        assert (out.mask.sum(-1) <= 6).all()
        assert out.mask.sum(dim=(1, 2)).tolist() == [6, 9]

    def test_more_than_there_is(self, name):
        reducer = built(name, keep=17)
        if name == "video_budget":
            assert reducer(tokens()).complete
            return
        with pytest.raises(InputError, match="keep = 17: a frame has only 16"):
            reducer(tokens())
        with pytest.raises(InputError, match="keep = 17"):
            reducer.kept_tokens(16, 3)

    def test_no_videos(self, name):
        assert reduced(name, tokens(batch=0), ratio=0.5).shape[0] == 0

    def test_gradients_reach_the_kept_features(self, name):
        given = tokens()
        given.features.requires_grad_()
        out = reduced(name, given, keep=4)
        out.features[out.mask].sum().backward()
        assert (given.features.grad.abs().sum(-1) > 0).sum().item() == out.mask.sum().item()


CHAIN = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(["keep", "ratio", "total"])), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given_any(CHAIN, st.booleans())
def test_index_is_true_to_the_first_grid_through_any_chain(chain, padded):
    """Every token carries its own video, frame and place as features, so that it can say where it came from."""
    given = tokens(padded=padded)
    places = torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(16)).view(2, 3, 16, 3).float()
    out = given.replace(features=places)
    keep, total = 16, 48
    for name, kind in chain:
        keep, total = max(keep - 3, 1), max(int(total * 0.7), 6)
        left = int(out.mask.sum(-1)[out.frame_mask].min())
        ratio = 0.6 if left > 1 else 1.0  # hired rounds down, and refuses to leave a frame without any token
        budget = {"keep": min(keep, left), "ratio": ratio, "total": total}[kind]
        out = reduced(name, out, **{kind: budget})
    for b, t in torch.cartesian_prod(torch.arange(2), torch.arange(3)).tolist():
        kept = out.index[b, t][out.mask[b, t]]
        assert (kept.diff() > 0).all()
        assert out.features[b, t][out.mask[b, t]].tolist() == [[b, t, place] for place in kept.tolist()]
        assert torch.equal(out.scores["cls_attention"][b, t][out.mask[b, t]], given.scores["cls_attention"][b, t, kept])
    laid, there = out.on_grid()
    y, x = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
    assert torch.equal(laid[..., 2][there], (4 * y + x).expand(2, 3, 4, 4)[there].float())


@pytest.mark.parametrize("name", ["fastervlm", "hired"])
def test_missing_scores_are_named_with_what_would_work(name):
    given = tokens().replace(scores={})
    with pytest.raises(InputError, match=r"'cls_attention'; these tokens carry none.*random.*uniform.*video_budget"):
        reduced(name, given, keep=4)


@pytest.mark.parametrize("name", ["fastervlm", "hired"])
def test_unusable_scores(name):
    given = tokens()
    given.scores["cls_attention"][0, 0, 0] = float("nan")
    with pytest.raises(InputError, match="finite"):
        reduced(name, given, keep=4)


def test_encoder_without_class_token_is_refused_with_the_way_out():
    class NoClassToken(Encoder):
        score_names = frozenset({"mean_attention"})
        grid = (4, 4)

    encoder = NoClassToken()
    reducer = registry.build("reducer", "fastervlm:keep=4")
    with pytest.raises(ConfigError, match=r"cannot give \(it has mean_attention\).*fastervlm:score=mean_attention"):
        require_fit(reducer, encoder)
    with pytest.raises(ConfigError, match=r"'hired' ranks .* use .*hired:score=mean_attention"):
        require_fit(registry.build("reducer", "hired:ratio=0.2"), encoder)
    require_fit(registry.build("reducer", "fastervlm:keep=4,score=mean_attention"), encoder)
    require_fit(registry.build("reducer", "random:keep=4"), encoder)
    with pytest.raises(ConfigError, match=r"'diffrate' works inside the blocks.*use .*random"):
        require_fit(registry.build("reducer", "diffrate:keep=4"), encoder)
