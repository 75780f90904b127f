"""Similarity of texts: known values, bounds, an independent longest common subsequence."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmllm.evaluation.text_metrics import rouge_l, token_f1

TEXTS = st.lists(st.sampled_from("the red circle spins then it stops".split()), max_size=8).map(" ".join)


@pytest.mark.parametrize(
    ("answer", "truth", "f1", "rouge"),
    [
        ("The red circle.", "the red circle", 1, 1),
        ("circle red", "red circle", 1, 0.5),
        ("a a a", "a", 0.5, 0.5),
        ("police killed the gunman", "police kill the gunman", 0.75, 0.75),
        ("the gunman kill police", "police kill the gunman", 1, 0.5),
        ("", "", 1, 1),
        ("?!", "", 1, 1),
        ("", "circle", 0, 0),
        ("Čaj 23", "čaj", 2 / 3, 2 / 3),
    ],
)
def test_known_values(answer, truth, f1, rouge):
    assert token_f1(answer, truth) == pytest.approx(f1)
    assert rouge_l(answer, truth) == pytest.approx(rouge)


@given(TEXTS, TEXTS)
def test_both_are_symmetric_fractions_and_order_only_lowers(first, second):
    for metric in (token_f1, rouge_l):
        assert 0 <= metric(first, second) <= 1
        assert metric(first, second) == metric(second, first)
        assert metric(first, first) == 1
    assert rouge_l(first, second) <= token_f1(first, second) + 1e-12


@given(TEXTS, TEXTS)
def test_the_longest_common_subsequence_is_found(first, second):
    def longest(a, b):
        if not a or not b:
            return 0
        return longest(a[1:], b[1:]) + 1 if a[0] == b[0] else max(longest(a[1:], b), longest(a, b[1:]))

    a, b = first.split()[:5], second.split()[:5]
    expected = 2 * longest(a, b) / (len(a) + len(b)) if a or b else 1
    assert rouge_l(" ".join(a), " ".join(b)) == pytest.approx(expected)
