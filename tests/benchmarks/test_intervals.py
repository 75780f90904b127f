"""benchmarks/intervals.py: intervals of numbers whose intervals are known."""

import numpy as np
import pytest

from benchmarks.intervals import (
    Interval,
    median_ratio,
    middle,
    over_seeds_and_clips,
    over_seeds_with_clips,
    quartiles,
    student,
    turn_ratio,
)


def test_quartiles_of_seven_numbers_in_any_order():
    assert quartiles([7, 3, 1, 5, 2, 6, 4]) == Interval(4, 2, 6, (7, 3, 1, 5, 2, 6, 4))
    assert quartiles([3.0]) == Interval(3.0, 3.0, 3.0, (3.0,))


def test_an_interval_is_formatted_as_its_middle_and_has_half_a_width():
    interval = Interval(65.0, 22.7, 107.3)
    assert f"{interval:.1f} ± {interval.half:.1f}" == "65.0 ± 42.3"
    assert middle(interval) == 65.0
    assert middle(2.5) == 2.5


def test_ratios_of_turns_do_not_feel_a_machine_that_slows_down():
    slower = [2.0, 4.0, 8.0, 16.0]
    assert turn_ratio([3 * seconds for seconds in slower], slower) == Interval(3, 3, 3, (3, 3, 3, 3))
    assert turn_ratio([1, 2, 3], [1, 1, 1]) == quartiles([1, 2, 3])


def test_a_ratio_of_medians_has_an_interval_that_covers_it():
    draw = np.random.default_rng(0)
    slow, fast = 6 + draw.normal(size=40), 2 + draw.normal(size=40) / 10
    ratio = median_ratio(slow, fast)
    assert ratio.middle == np.median(slow) / np.median(fast)
    assert ratio.low < 3 < ratio.high
    assert 0.1 < ratio.half < 0.6  # a median of 40 has a standard error of about 0.2 there
    assert median_ratio([6, 6], [2, 2]) == Interval(3, 3, 3)


def test_students_interval_of_three_numbers():
    interval = student([1.0, 2.0, 3.0])
    assert interval.middle == 2
    assert interval.half == pytest.approx(4.30 / 3**0.5)
    assert student([5.0]) == 5.0
    assert student(range(20)).half == pytest.approx(2.26 * np.std(range(20), ddof=1) / 20**0.5)


@pytest.mark.parametrize("over", [over_seeds_and_clips, over_seeds_with_clips])
def test_the_interval_covers_the_mean_and_shrinks_with_more_clips(over):
    few, many = ([[0.5 + 0.3 * (-1) ** clip for clip in range(clips)]] * 3 for clips in (6, 200))
    wide, narrow = over(few), over(many)
    assert wide.middle == pytest.approx(0.5)
    assert wide.low < wide.middle < wide.high
    assert narrow.half < wide.half / 3
    assert wide.values == pytest.approx((0.5, 0.5, 0.5))


def test_seeds_with_the_same_clips_vary_together():
    clips = [[0.0, 1.0] * 10] * 5
    assert over_seeds_and_clips(clips).half > 1.5 * over_seeds_with_clips(clips).half
