"""A budget is one of three numbers; shares add up and stay within bounds."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmllm.errors import ConfigError, InputError
from mmllm.pruning.budget import Budget, apportion


def mask(*lengths, tokens=10):
    """B T N of one video with these numbers of tokens a frame."""
    return torch.arange(tokens) < torch.tensor([lengths]).unsqueeze(-1)


@pytest.mark.parametrize("given", [{}, {"keep": 3, "ratio": 0.5}, {"keep": 3, "total": 4}])
def test_exactly_one(given):
    with pytest.raises(ConfigError, match="exactly one of keep, ratio and total"):
        Budget(**given)


@pytest.mark.parametrize("given", [{"keep": 0}, {"ratio": 0.0}, {"ratio": 1.01}, {"total": 0}, {"ratio": float("nan")}])
def test_impossible(given):
    with pytest.raises(ConfigError, match=next(iter(given))):
        Budget(**given)


def test_tokens_are_whole_numbers():
    for field in ("keep", "total"):
        with pytest.raises(TypeError):
            Budget(**{field: 1.5})


@pytest.mark.parametrize(
    ("tokens", "reduction", "kept"),
    [(576, 0.25, 432), (576, 0.5, 288), (576, 0.75, 144), (576, 0.9, 58), (576, 0.95, 29),
     (256, 0.75, 64), (256, 0.9, 26), (256, 0.95, 13)],
)  # fmt: skip
def test_published_reductions(tokens, reduction, kept):
    budget = Budget(ratio=1 - reduction)
    assert budget.fraction(tokens) == kept
    assert budget.upper_bound(tokens, 5) == 5 * kept


def test_per_frame():
    assert Budget(keep=4).per_frame(mask(10, 3, 0)).tolist() == [[4, 3, 0]]
    assert Budget(ratio=0.5).per_frame(mask(10, 3, 0)).tolist() == [[5, 2, 0]]
    assert Budget(ratio=0.01).per_frame(mask(10, 10)).tolist() == [[1, 1]]
    assert Budget(total=8).per_frame(mask(10, 10, 10, 0)).tolist() == [[2, 3, 3, 0]]
    assert Budget(total=99).per_frame(mask(10, 10)).tolist() == [[10, 10]]


def test_too_much_and_too_little():
    with pytest.raises(InputError, match=r"keep = 11: a frame has only 10"):
        Budget(keep=11).per_frame(mask(10))
    with pytest.raises(InputError, match=r"keep = 11"):
        Budget(keep=11).upper_bound(10, 3)
    with pytest.raises(InputError, match=r"total = 2 is less than one token for each of 3 frames"):
        Budget(total=2).per_frame(mask(10, 10, 10))


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 10), st.integers(0, 12)), min_size=1, max_size=8),
    st.integers(0, 60),
    st.integers(0, 2),
)
def test_apportioned_shares_add_up(entries, total, least):
    weights, most = np.array([w for w, _ in entries]), np.array([m for _, m in entries])
    if np.minimum(least, most).sum() > total:
        with pytest.raises(InputError, match="less than"):
            apportion(weights, total, least=least, most=most)
        return
    counts = apportion(weights, total, least=least, most=most)
    assert counts.sum() == min(total, most.sum())
    assert (counts <= most).all()
    assert (counts >= np.minimum(least, most)).all()


def test_apportioned_in_proportion():
    assert apportion(np.array([0.32, 0.08, 0.58, 0.02]), 50, least=0, most=np.full(4, 99)).tolist() == [16, 4, 29, 1]
    assert apportion(np.array([1.0, 1.0, 1.0]), 7, least=0, most=np.full(3, 9)).tolist() == [3, 2, 2]
    assert apportion(np.array([0.0, 0.0]), 6, least=0, most=np.full(2, 9)).tolist() == [3, 3]
    assert apportion(np.array([9.0, 1.0, 1.0]), 10, least=0, most=np.array([4, 9, 9])).tolist() == [4, 3, 3]
