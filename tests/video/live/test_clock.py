"""Seconds of a stream across gaps and restarts, and which frames a rate takes."""

import pytest

from mmllm.video.live.clock import StreamClock, Ticks


def test_a_stream_begins_at_zero_and_keeps_its_clock_across_a_gap():
    clock = StreamClock(2.0)
    read = [clock.read(stamp_s) for stamp_s in (7.0, 7.2, 7.4, 12.4, 12.6)]
    assert [time_s for time_s, _ in read] == pytest.approx([0.0, 0.2, 0.4, 5.4, 5.6])
    gaps = [gap for _, gap in read if gap]
    assert len(gaps) == 1
    assert (gaps[0].start_s, gaps[0].end_s, gaps[0].measured) == (pytest.approx(0.4), pytest.approx(5.4), True)


def test_a_clock_that_begins_anew_goes_on_by_the_wall_clock():
    clock = StreamClock(2.0)
    for stamp_s in (0.0, 0.2, 0.4):
        clock.read(stamp_s, 100 + stamp_s)
    time_s, gap = clock.read(0.0, 106.4)
    assert time_s == pytest.approx(6.4)
    assert gap is not None
    assert not gap.measured
    assert clock.read(0.2, 106.6) == (pytest.approx(6.6), None)


def test_another_container_goes_on_by_the_wall_clock_unless_its_clock_agrees():
    for first_s, expected_s, measured in ((30.0, 5.0, False), (5.2, 5.2, True)):
        clock = StreamClock(2.0)
        clock.read(0.0, 100.0)
        clock.begin_anew()
        time_s, gap = clock.read(first_s, 105.0)
        assert time_s == pytest.approx(expected_s)
        assert gap is not None
        assert gap.measured == measured


def test_a_source_that_is_not_live_goes_on_a_step_later():
    clock = StreamClock(2.0)
    for stamp_s in (0.0, 0.2, 0.4):
        clock.read(stamp_s)
    assert clock.read(0.0) == (pytest.approx(0.6), None)


def test_times_ascend_for_a_day_whatever_the_stamps_are():
    clock, last = StreamClock(2.0), -1.0
    for number in range(24 * 3600 * 2):
        time_s, _ = clock.read((number * 0.5) % 26.0, number * 0.5)  # stamps that wrap again and again
        assert time_s > last
        last = time_s
    assert last == pytest.approx(24 * 3600, rel=0.01)


@pytest.mark.parametrize(("fps", "rate", "taken"), [(5, 2, 20), (30, 2, 20), (1, 2, 10), (5, 5, 50)])
def test_a_rate_takes_so_many_frames_a_second(fps, rate, taken):
    ticks = Ticks(rate)
    assert sum(ticks.take(number / fps) for number in range(10 * fps)) == taken
