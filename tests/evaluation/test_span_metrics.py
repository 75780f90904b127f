"""Sets of spans: overlap, its matrix, and the distance of a reward, against scorers written another way."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mmllm.errors import InputError
from mmllm.evaluation.span_metrics import (
    iou,
    merged,
    set_iou,
    tiou_matrix,
    wasserstein1,
    wasserstein_reward,
)
from mmllm.times.answers import Span

SECONDS = st.floats(0, 1e4)
SPANS = st.tuples(SECONDS, SECONDS).map(lambda ends: Span(*sorted(ends)))
SETS = st.lists(SPANS, min_size=1, max_size=5)
WHOLE = st.lists(
    st.tuples(st.integers(0, 40), st.integers(1, 20)).map(lambda p: Span(p[0], p[0] + p[1])), min_size=1, max_size=4
)
"""Sets of spans with whole seconds from 0 to 60, each with a length."""


def test_known_values():
    assert iou(Span(0, 10), Span(5, 15)) == pytest.approx(1 / 3)
    assert iou(Span(0, 1), Span(2, 3)) == 0
    assert iou(Span(0, 1), Span(1, 2)) == 0
    assert iou(Span(4, 4), Span(4, 4)) == 1
    assert iou(Span(4, 4), Span(5, 5)) == iou(Span(4, 4), Span(3, 5)) == 0
    assert set_iou([Span(0, 2), Span(4, 6)], [Span(1, 5)]) == pytest.approx(2 / 6)
    assert set_iou([Span(0, 2), Span(1, 3)], [Span(0, 3)]) == 1
    assert set_iou([], [Span(0, 3)]) == set_iou([Span(0, 3)], []) == 0
    assert set_iou([], []) == 1


@given(SPANS, SPANS)
def test_iou_is_a_symmetric_fraction(first, second):
    score = iou(first, second)
    assert 0 <= score <= 1 + 1e-9
    assert score == iou(second, first)
    assert iou(first, first) == 1


@given(st.lists(SPANS, max_size=5), st.lists(SPANS, max_size=5))
def test_set_iou_does_not_depend_on_how_a_set_is_cut(first, second):
    assert 0 <= set_iou(first, second) <= 1 + 1e-9
    assert set_iou(first[::-1] + first, second) == set_iou(first, second)
    assert merged(merged(first)) == merged(first)


def seconds_of(spans):
    """The whole seconds that a set covers."""
    return {second for span in spans for second in range(int(span.start_s), int(span.end_s))}


@given(WHOLE, WHOLE)
def test_set_iou_counts_the_shared_seconds(first, second):
    a, b = seconds_of(first), seconds_of(second)
    assert set_iou(first, second) == pytest.approx(len(a & b) / len(a | b))


@given(WHOLE, WHOLE)
def test_the_matrix_compares_each_with_each(first, second):
    start = np.maximum.outer([span.start_s for span in first], [span.start_s for span in second])
    end = np.minimum.outer([span.end_s for span in first], [span.end_s for span in second])
    lengths = np.add.outer([span.length_s for span in first], [span.length_s for span in second])
    shared = np.clip(end - start, 0, None)
    assert tiou_matrix(first, second) == pytest.approx(shared / (lengths - shared))


def test_the_matrix_of_nothing_has_its_shape():
    assert tiou_matrix([], [Span(0, 1)] * 3).shape == (0, 3)
    assert tiou_matrix([Span(0, 1)] * 2, []).shape == (2, 0)


@given(WHOLE, WHOLE)
def test_the_distance_is_the_area_between_the_distribution_functions(first, second):
    edges = np.linspace(0, 60, 60 * 50 + 1)
    middles = (edges[1:] + edges[:-1]) / 2

    def distribution(spans):
        covered = sorted(seconds_of(spans))
        return np.mean([np.clip(middles - second, 0, 1) for second in covered], axis=0)

    area = np.abs(distribution(first) - distribution(second)).sum() * (edges[1] - edges[0])
    assert wasserstein1(first, second) == pytest.approx(area, abs=2e-3)


@given(SETS, SETS, SETS)
def test_the_distance_is_a_metric(first, second, third):
    assert wasserstein1(first, first) == 0
    assert wasserstein1(first, second) == pytest.approx(wasserstein1(second, first), abs=1e-6)
    around = wasserstein1(first, second) + wasserstein1(second, third)
    assert wasserstein1(first, third) <= around + 1e-6


@given(SETS, st.floats(0, 100))
def test_a_moved_set_is_as_far_as_it_was_moved(spans, by_s):
    assume(all(span.length_s == 0 or span.length_s > 1e-3 for span in spans))
    moved = [Span(span.start_s + by_s, span.end_s + by_s) for span in spans]
    assert wasserstein1(spans, moved) == pytest.approx(by_s, abs=1e-3)


def test_instants_have_equal_shares_and_vanish_beside_spans():
    assert wasserstein1([Span(2, 2), Span(6, 6)], [Span(4, 4)]) == 2
    assert wasserstein1([Span(0, 0), Span(4, 6)], [Span(4, 6)]) == 0


def test_the_distance_of_nothing_is_refused():
    for pair in ([[], [Span(0, 1)]], [[Span(0, 1)], []], [[], []]):
        with pytest.raises(InputError, match="at least one span in each"):
            wasserstein1(*pair)


def test_the_reward_of_known_answers():
    truth = [Span(10, 20)]
    assert wasserstein_reward(truth, truth) == 1
    assert wasserstein_reward([Span(20, 30)], truth) == pytest.approx(math.exp(-3))
    assert wasserstein_reward([Span(20, 30)], truth, beta=1) == pytest.approx(math.exp(-1))
    # [10, 15] has its quarter 2.5 s before that of the truth: W1 = 2.5 s of 10 s
    assert wasserstein_reward([Span(10, 15)], truth) == pytest.approx(math.exp(-0.75))
    nearer, farther = [Span(25, 30)], [Span(45, 50)]
    assert set_iou(nearer, truth) == set_iou(farther, truth) == 0
    assert wasserstein_reward(nearer, truth) > wasserstein_reward(farther, truth) > 0


def test_the_reward_of_the_empty_set():
    assert wasserstein_reward([], []) == 1
    assert wasserstein_reward([], [Span(0, 1)]) == wasserstein_reward([Span(0, 1)], []) == 0


def test_the_reward_of_instants():
    assert wasserstein_reward([Span(3, 3)], [Span(3, 3)]) == 1
    assert wasserstein_reward([Span(3, 4)], [Span(3, 3)]) == 0


@pytest.mark.parametrize("beta", [0, -1, math.nan, math.inf])
def test_a_reward_without_a_positive_beta_is_refused(beta):
    with pytest.raises(InputError, match="beta must be a positive number"):
        wasserstein_reward([Span(0, 1)], [Span(0, 1)], beta)
