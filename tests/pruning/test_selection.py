"""Selection keeps the best, in order, ties by position, whatever k is."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmllm.errors import InputError
from mmllm.pruning.selection import check_features, ranks, top_attended, top_counted

LEVELS = st.lists(st.lists(st.integers(0, 4), min_size=6, max_size=6), min_size=1, max_size=3)


def test_by_hand():
    scores = torch.tensor([[0.1, 0.5, 0.3, 0.5], [9.0, 1.0, 2.0, 3.0]])
    assert top_attended(scores, 2).tolist() == [[1, 3], [0, 3]]
    assert ranks(scores).tolist() == [[3, 0, 2, 1], [0, 3, 2, 1]]


def test_ties_go_to_the_earlier_position():
    assert top_attended(torch.ones(3, 1000), 5).tolist() == [[0, 1, 2, 3, 4]] * 3


@pytest.mark.parametrize("k", [4, 5, 100])
def test_all_when_k_is_large(k):
    assert top_attended(torch.tensor([3.0, 1.0, 2.0, 0.0]), k).tolist() == [0, 1, 2, 3]


def test_none():
    assert top_attended(torch.rand(2, 4), 0).shape == (2, 0)
    assert top_attended(torch.rand(0, 4), 2).shape == (0, 2)
    assert top_attended(torch.rand(2, 0), 2).shape == (2, 0)
    index, kept = top_counted(torch.rand(0, 4), torch.zeros(0, dtype=torch.long))
    assert index.shape == kept.shape == (0, 0)


@settings(max_examples=60, deadline=None)
@given(LEVELS, st.integers(0, 6), st.integers(0, 6))
def test_ascending_nested_and_best(levels, k, more):
    scores = torch.tensor(levels, dtype=torch.float)
    for row, index, larger in zip(scores, top_attended(scores, k), top_attended(scores, k + more), strict=True):
        kept = index.tolist()
        assert kept == sorted(set(kept))
        assert set(kept) <= set(larger.tolist())
        dropped = [j for j in range(6) if j not in kept]
        assert all((-row[i], i) < (-row[j], j) for i in kept for j in dropped)


@settings(max_examples=60, deadline=None)
@given(LEVELS, st.data())
def test_counted_agrees_with_top_attended(levels, data):
    scores = torch.tensor(levels, dtype=torch.float)
    counts = [data.draw(st.integers(0, 8)) for _ in levels]
    index, kept = top_counted(scores, torch.tensor(counts))
    for row, count, positions, valid in zip(scores, counts, index, kept, strict=True):
        assert positions[valid].tolist() == top_attended(row, count).tolist()


def test_masked_tokens_are_never_kept():
    scores = torch.tensor([[5.0, 4.0, float("nan"), 2.0]])
    mask = torch.tensor([[True, False, False, True]])
    index, kept = top_counted(scores, torch.tensor([3]), mask)
    assert index[kept].tolist() == [0, 3]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_rank_nothing(value):
    with pytest.raises(InputError, match="finite"):
        top_attended(torch.tensor([1.0, value]), 1)
    with pytest.raises(InputError, match="finite"):
        top_counted(torch.tensor([1.0, value]), torch.tensor(1))


def test_k_must_be_a_count():
    with pytest.raises(TypeError):
        top_attended(torch.rand(4), 1.5)
    with pytest.raises(InputError, match="-1"):
        top_attended(torch.rand(4), -1)


def test_features_that_cannot_be_compared_are_refused_unless_they_are_masked():
    features = torch.randn(2, 3, 4, dtype=torch.float16)
    mask = torch.ones(2, 3, dtype=torch.bool)
    check_features(features, mask)
    for wrong in (torch.nan, torch.inf, -torch.inf):
        features[1, 2, 3] = wrong
        with pytest.raises(InputError, match="finite"):
            check_features(features, mask)
        mask[1, 2] = False
        check_features(features, mask)
        mask[1, 2] = True
