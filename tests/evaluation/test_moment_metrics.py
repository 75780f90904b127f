"""mAP and R1 of ranked spans: a scorer of ten lines, the released evaluation's numbers, and what is left out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmllm.evaluation.moment_metrics import LEVELS, MOST_RANKED, Moments, average_precisions, moment_scores
from mmllm.evaluation.span_metrics import tiou_matrix
from mmllm.times.answers import Span

WINDOW = st.tuples(st.integers(0, 40), st.integers(1, 20)).map(lambda pair: Span(pair[0], pair[0] + pair[1]))


def moments(predicted, truth):
    return Moments(predicted=tuple(Span(*ends) for ends in predicted), truth=tuple(Span(*ends) for ends in truth))


def plain_average_precision(question, level):
    """Mean over the true spans of the best precision at any rank that finds at least so many of them."""
    free, found = list(question.truth), []
    for span in question.predicted[:10]:
        overlap = [min(span.end_s, t.end_s) - max(span.start_s, t.start_s) for t in free]
        ious = [max(o, 0) / (span.length_s + t.length_s - max(o, 0)) for o, t in zip(overlap, free, strict=True)]
        best = max(ious, default=-1)
        found.append(best >= level)
        if best >= level:
            del free[len(ious) - 1 - ious[::-1].index(best)]  # of two that are as near, the later one
    curve = [(sum(found[:rank]), sum(found[:rank]) / rank) for rank in range(1, len(found) + 1)]
    return sum(max((p for hits, p in curve if hits >= n), default=0) for n in range(1, len(question.truth) + 1)) / len(
        question.truth
    )


@settings(deadline=None)
@given(st.lists(WINDOW, max_size=12), st.lists(WINDOW, min_size=1, max_size=4))
def test_average_precision_is_that_of_a_plain_scorer(predicted, truth):
    question = Moments(predicted=tuple(predicted), truth=tuple(truth))
    expected = [plain_average_precision(question, level) for level in LEVELS]
    tiou = tiou_matrix(question.predicted[:MOST_RANKED], question.truth)
    assert average_precisions(tiou).tolist() == pytest.approx(expected)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.lists(WINDOW, max_size=4), st.lists(WINDOW, min_size=1, max_size=3)), min_size=1, max_size=4)
)
def test_scores_are_means_over_questions(pairs):
    questions = [Moments(predicted=tuple(predicted), truth=tuple(truth)) for predicted, truth in pairs]
    scores = moment_scores(questions)
    each = np.array([[plain_average_precision(question, level) for level in LEVELS] for question in questions])
    assert scores["map"] == pytest.approx(each.mean())
    assert scores["map_at_0.5"] == pytest.approx(each[:, 0].mean())
    assert scores["map_at_0.75"] == pytest.approx(each[:, 5].mean())
    for level in (0.3, 0.5, 0.7):
        first = [
            any(
                max(0, min(p.end_s, t.end_s) - max(p.start_s, t.start_s))
                >= level * (max(p.end_s, t.end_s) - min(p.start_s, t.start_s)) - 1e-9
                for p in question.predicted[:1]
                for t in question.truth
            )
            for question in questions
        ]
        assert scores[f"r1_at_{level}"] == pytest.approx(np.mean(first))


def test_known_values():
    both = moments([(0, 10), (20, 30)], [(0, 10), (20, 30)])
    assert moment_scores([both])["map"] == 1
    # the second true span is found at rank 3 only: (1 + 2/3) / 2
    late = moments([(0, 10), (50, 60), (20, 30)], [(0, 10), (20, 30)])
    assert moment_scores([late])["map"] == pytest.approx((1 + 2 / 3) / 2)
    # a true span is found once
    assert moment_scores([moments([(0, 10), (0, 10)], [(0, 10), (20, 30)])])["map"] == 0.5
    # IoU 0.8 reaches seven of ten levels
    assert moment_scores([moments([(0, 8)], [(0, 10)])])["map"] == pytest.approx(0.7)


def test_the_eleventh_span_does_not_count():
    wrong = [(50 + i, 51 + i) for i in range(10)]
    assert moment_scores([moments([*wrong, (0, 10)], [(0, 10)])])["map"] == 0


def test_groups_have_the_true_spans_of_their_length():
    question = moments([(0, 10)], [(0, 10), (20, 40), (40, 75)])
    scores = moment_scores([question])
    assert (scores["map_short"], scores["map_middle"], scores["map_long"]) == (1, 0, 0)
    assert moment_scores([moments([(0, 10)], [(0, 10)])])["map_long"] is None


def test_an_answer_without_spans_is_zero_and_no_question_is_nothing():
    scores = moment_scores([moments([], [(0, 10)]), moments([(0, 10)], [(0, 10)])])
    assert (scores["map"], scores["r1_at_0.5"]) == (0.5, 0.5)
    assert set(moment_scores([]).values()) == {None}
