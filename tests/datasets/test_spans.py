"""Times inside, a little outside, and far outside of their video."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmllm.datasets.spans import Length, fitted, fitted_stamps
from mmllm.errors import InputError
from mmllm.times.answers import Span

LENGTHS = st.floats(0.5, 1e5)


@pytest.mark.parametrize(
    ("pair", "seconds", "span"),
    [
        ((1, 2), 3, (1, 2)),
        ((0, 3), 3, (0, 3)),
        ((1, 4), 3, (1, 3)),  # a second over
        ((50, 104.9), 100, (50, 100)),  # five per cent over
        ((-0.5, 2), 3, (0, 2)),
        ((1, 2), None, (1, 2)),
        ((90, 150), None, (90, 150)),
    ],
)
def test_ends_a_little_outside_are_clipped_and_told(pair, seconds, span):
    fitting, problem = fitted(*pair, None if seconds is None else Length(seconds=seconds))
    assert fitting == Span(*map(float, span))
    assert bool(problem) == (span != pair)


@pytest.mark.parametrize(
    ("pair", "seconds", "reasons"),
    [
        ((90, 150), 3, ("[90, 150]", "lasts 3 s", "frame numbers or milliseconds?")),
        ((500, 1500), 3, ("milliseconds?",)),
        ((25, 75), 3, ("frame numbers",)),
        ((1, 4.1), 3, ("outside of the video", "cut out of a longer one")),
        ((3, 3.5), 3, ("outside of the video",)),
        ((3.2, 3.5), 3, ("outside of the video",)),
        ((50, 106), 100, ("outside of the video",)),
        ((-9, -1), 3, ("outside of the video",)),
        ((2, 2), 3, ("has no length", "lasts 3 s")),
        ((2, 1), 3, ("ends before it starts", "a start and a length?")),
        ((2.5, 1), 3, ("ends before it starts", "in the wrong order?")),
        ((2, 2), None, ("has no length",)),
        (("1", 2), 3, ("a start must be a number of seconds",)),
        ((1, True), 3, ("an end must be a number of seconds",)),
    ],
)
def test_other_intervals_are_refused_with_value_length_and_guess(pair, seconds, reasons):
    with pytest.raises(InputError) as refused:
        fitted(*pair, None if seconds is None else Length(seconds=seconds, annotated=False))
    for reason in reasons:
        assert reason in str(refused.value)


@given(LENGTHS, st.floats(0, 2), st.floats(0, 2))
def test_what_is_taken_lies_inside_and_has_a_length(seconds, start, length):
    start_s, end_s = start * seconds, (start + length) * seconds
    try:
        span, problem = fitted(start_s, end_s, Length(seconds=seconds))
    except InputError:
        assert start_s >= end_s or start_s >= seconds or end_s > seconds
        return
    assert 0 <= span.start_s < span.end_s <= seconds
    assert (span == Span(start_s, end_s)) == (not problem)


def test_times_inside_a_text():
    length = Length(seconds=10)
    assert not fitted_stamps("<1> <4> It spins.", length, interval=True)
    assert "was clipped" in fitted_stamps("<1> <10.5> It spins.", length, interval=True)
    assert "was clipped" in fitted_stamps("What is at <10.5>?", length, interval=False)
    assert not fitted_stamps("At <5> and at <2>.", length, interval=False)
    for text, interval in (("<4> <1>", True), ("<4> <4>", True), ("<90> <99>", True), ("At <90>?", False)):
        with pytest.raises(InputError):
            fitted_stamps(text, length, interval=interval)
