"""Times of packets that cannot be right, as numbers alone: no file is read."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from mmllm.video._broken_clock import repaired
from mmllm.video._frame_index import from_packets
from mmllm.video._missing_times import filled
from mmllm.video._packet_headers import NONE, Packets

SECOND = 1000


def repair(pts, key=None, *, held_back=16, jumps=False):
    if key is None:  # at frames that are stored before others
        key = (np.arange(len(pts)) % 12 == 1) | (np.arange(len(pts)) == 0)
    key = np.array(key)
    options = {"second": SECOND, "gap": 40.0, "held_back": held_back}
    return repaired(np.array(pts), key, **options, is_jump=lambda before, after: jumps)


def of_b_frames(count: int, start: int = 0, gap: int = 40) -> list[int]:
    """Times in stored order: each third frame is stored before the two that are shown before it."""
    order = [0] + [shown for first in range(1, count, 3) for shown in (first + 2, first, first + 1)]
    return [start + gap * shown for shown in order if shown < count]


def test_a_right_clock_is_left_alone():
    for pts in (
        list(range(0, 4000, 40)),
        of_b_frames(100),
        [60_000 * i for i in range(20)],
        of_b_frames(40, gap=60_000),
    ):
        for key in (None, [True] * len(pts)):
            clock = repair(pts, key)
            assert not clock.moved
        assert clock.ticks.tolist() == pts
        assert (np.diff(clock.ticks[clock.order]) > 0).all()


@pytest.mark.parametrize("starts", [(0, 20), (0, 3940), (5000, 0), (0, 0, 0), (9000, 4000, 0)])
def test_each_part_goes_on_where_the_one_before_it_ended(starts):
    pts = [time for start in starts for time in of_b_frames(100, start)]
    clock = repair(pts, [number % 100 == 0 for number in range(len(pts))])
    expected = [starts[0] + time for part in range(len(starts)) for time in of_b_frames(100, 4000 * part)]
    assert clock.ticks.tolist() == expected
    assert clock.breaks == tuple(range(100, 100 * len(starts), 100))


def test_a_part_without_a_key_packet_is_found_once_no_decoder_could_hold_the_frames_back():
    pts = of_b_frames(100, 8000) + of_b_frames(100)
    clock = repair(pts, [number == 0 for number in range(200)])
    assert clock.ticks.tolist() == of_b_frames(100, 8000) + of_b_frames(100, 12_000)


def test_a_codec_without_b_frames_never_goes_back():
    pts = [0, 40, 80, 60, 100, 140]
    assert repair(pts, [True] + 5 * [False], held_back=0).breaks == (3,)
    assert not repair(pts, [True] + 5 * [False], held_back=16).moved


def test_a_jump_only_where_it_can_be_one():
    pts = [*range(0, 4000, 40), *range(60_000, 64_000, 40)]
    assert not repair(pts).moved
    clock = repair(pts, jumps=True)
    assert clock.ticks.tolist() == list(range(0, 8000, 40))
    assert not repair([*range(0, 4000, 40), *range(13_900, 18_000, 40)], jumps=True).moved  # 9.94 s


def test_a_clock_that_falls_back_also_jumps():
    pts = [*range(0, 4000, 40), *range(0, 4000, 40), *range(90_000, 94_000, 40)]
    clock = repair(pts, [number % 100 == 0 for number in range(300)])
    assert clock.ticks.tolist() == list(range(0, 12_000, 40))


def test_one_repetition_moves_by_a_tick():
    pts = [0, 40, 80, 80, 160, 200]
    assert repair(pts).ticks.tolist() == [0, 40, 80, 81, 160, 200]
    assert repair([0, 1, 2, 2, 3, 5]).ticks.tolist() == [0, 1, 2, 3, 4, 5]


def test_a_clock_that_stands_still_is_spread():
    pts = [0, 40, 80, 80, 80, 80, 240, 280, 320, 360]
    clock = repair(pts)
    assert clock.ticks.tolist() == list(range(0, 400, 40))
    assert clock.stands_still
    assert repair([0, 40, 80, 120, 120, 120, 120]).ticks.tolist() == list(range(0, 280, 40))
    assert repair([7] * 20) is None


def test_a_time_far_from_those_around_it():
    for wrong in (50_000_000, -50_000_000):
        pts = of_b_frames(100)
        right = list(pts)
        pts[52] = wrong
        clock = repair(pts)
        assert clock.lone == (52,)
        assert clock.ticks.tolist() == right


def test_every_packet_with_another_clock_takes_no_longer_than_it_must():
    pts = np.arange(200_000)[::-1] * 40
    clock = repair(pts, np.ones(200_000, dtype=bool), held_back=0)
    assert clock.ticks[0] < clock.ticks[-1]
    assert len(clock.breaks) == 199_999


def test_missing_times_are_put_between_their_neighbours():
    assert filled(np.array([0, 40, NONE, 120, 160, 200, 240, 280, 320, 360, 400]), SECOND)[2] == 80
    missing_at_the_ends = np.array([NONE, *range(40, 1000, 40), NONE])
    assert filled(missing_at_the_ends, SECOND).tolist() == list(range(0, 1040, 40))
    before_a_jump = np.array([*range(0, 400, 40), NONE, *range(90_000, 90_400, 40)])
    assert filled(before_a_jump, SECOND)[10] == 400
    assert filled(np.array([0, NONE, 80, NONE]), SECOND) is None
    assert filled(np.array([*of_b_frames(30), NONE]), SECOND) is None


@pytest.mark.parametrize(
    ("durations", "end", "length_s"),
    [
        ([40, 40, 9000], 9080, 9.08),  # the packet and the header agree
        ([40, 40, 9000], None, 9.08),
        ([40, 40, 9000], 500, 0.5),  # cut by an edit list
        ([40, 40, 9000], 60, 0.12),  # a header that ends before the last frame is wrong
        ([40, 40, 0], 9080, 0.12),  # the header alone makes nothing longer
        ([1, 1, 1], None, 0.12),  # FFmpeg's guess from a rate of 1000
        ([40, 40, 5], None, 0.085),
    ],
)
def test_how_long_the_last_frame_lasts(durations, end, length_s):
    packets = Packets(
        pts=np.array([0, 40, 80]),
        dts=np.array([0, 40, 80]),
        duration=np.array(durations),
        key=np.array([True, False, False]),
        hidden=np.zeros(3, dtype=bool),
        time_base=Fraction(1, 1000),
    )
    options = {"trusted": True, "first_pts": 0, "held_back": 16, "is_jump": lambda before, after: False}
    assert from_packets(packets, 25.0, end=end, **options).duration_s == pytest.approx(length_s)
