"""The tolerance of numeric tests: it follows the size of the numbers and the length of the sums."""

import pytest
import torch
from nearness import assert_near, tolerance


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_another_order_of_additions_is_near_and_a_mistake_is_not(scale):
    parts = torch.randn(64, 1024) * scale
    one_by_one = torch.zeros(64)
    for term in parts.T:
        one_by_one += term
    assert_near(parts.sum(1), one_by_one)
    with pytest.raises(AssertionError):
        assert_near(parts[:, :-1].sum(1), one_by_one)
    with pytest.raises(AssertionError):
        assert_near(one_by_one * 1.0001, one_by_one)


def test_the_tolerance_follows_size_and_length():
    values = torch.tensor([0.5, -2.0])
    assert tolerance(values * 3) == pytest.approx(3 * tolerance(values))
    assert tolerance(values, 400) == pytest.approx(2 * tolerance(values, 100))
    assert tolerance(values.bfloat16()) == pytest.approx(2**16 * tolerance(values))
    assert tolerance(torch.zeros(2)) == tolerance(torch.empty(0)) == 0


@pytest.mark.parametrize("other", [[0.5, float("nan")], [0.5, float("inf")], [0.5, -2.0, 0.0], [[0.5, -2.0]]])
def test_other_shapes_and_numbers_that_are_not_finite_are_not_near(other):
    with pytest.raises(AssertionError):
        assert_near(torch.tensor(other), torch.tensor([0.5, -2.0]))
