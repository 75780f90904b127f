"""Sample plans: LITA's rule, even instants, steady rates, Slow-Fast's policies."""

import numpy as np
import pytest

from mmllm.errors import ConfigError, InputError
from mmllm.video import sampling


def test_uniform_by_index_takes_both_ends_and_rounds_half_to_even():
    indices, valid = sampling.uniform_by_index(100, 4)
    assert indices.tolist() == [0, 33, 66, 99]
    assert valid.all()
    assert sampling.uniform_by_index(4, 3)[0].tolist() == [0, 2, 3]  # 1.5 goes to 2
    assert sampling.uniform_by_index(6, 3)[0].tolist() == [0, 2, 5]  # 2.5 goes to 2


@pytest.mark.parametrize("count", [1, 2, 3, 99, 100, 101, 1189])
@pytest.mark.parametrize("frames", [1, 2, 8, 100])
def test_uniform_by_index_is_ascending_and_marks_repetitions(count, frames):
    indices, valid = sampling.uniform_by_index(count, frames)
    assert len(indices) == len(valid) == frames
    assert (np.diff(indices) >= 0).all()
    assert indices[0] == 0
    assert indices[-1] == (count - 1 if frames > 1 else 0)
    assert valid.sum() == len(set(indices.tolist())) <= min(count, frames)
    assert valid.tolist() == [i == 0 or indices[i] != indices[i - 1] for i in range(frames)]


def test_uniform_by_time_takes_the_middle_of_equal_parts():
    np.testing.assert_allclose(sampling.uniform_by_time(10.0, 4), [1.25, 3.75, 6.25, 8.75])


def test_every_stops_before_the_end_and_thins_out_evenly():
    np.testing.assert_allclose(sampling.every(2.0, 2.0), [0, 0.5, 1, 1.5])
    np.testing.assert_allclose(sampling.every(0.1, 2.0), [0])
    np.testing.assert_allclose(sampling.every(1.2, 5.0), [0, 0.2, 0.4, 0.6, 0.8, 1.0])
    np.testing.assert_allclose(sampling.every(10.0, 1.0, 3), [0, 4, 9])


def test_slow_fast_takes_all_candidates_or_an_even_subset_that_ends_with_the_last():
    assert sampling.slow_fast(60, 30.0, 64).tolist() == [0, 8, 16, 24, 32, 40, 48, 56]  # round(30 / 4) = 8
    chosen = sampling.slow_fast(3000, 30.0, 64)
    assert len(chosen) == 64
    assert chosen[-1] == 374 * 8  # the last of 375 candidates
    assert (np.diff(chosen) > 0).all()
    assert sampling.slow_fast(10, 2.0, 64).tolist() == list(range(10))  # slower than the target rate


def test_slow_fast_demo_cuts_to_whole_numbers():
    assert sampling.slow_fast_demo(4, 3).tolist() == [0, 1, 3]


@pytest.mark.parametrize("fps", [1.0, 7.5, 23.976, 29.97, 60.0])
@pytest.mark.parametrize("target_fps", [2.0, 4.0])
@pytest.mark.parametrize("count", [1, 17, 240, 5000])
def test_slow_fast_is_the_published_rule(count, fps, target_fps):
    """Written out with Python's numbers, whose `round` also takes halves to even ones."""
    frames = 32
    candidates = list(range(0, count, max(1, round(fps / min(target_fps, fps)))))
    expected = candidates
    if len(candidates) >= frames:
        expected = [candidates[round((i + 1) * len(candidates) / frames - 1)] for i in range(frames)]
    assert sampling.slow_fast(count, fps, frames, target_fps).tolist() == expected
    rule = sampling.FrameRule.of(f"slow-fast:fps={target_fps}")
    assert rule.indices(count, fps, frames).tolist() == expected


def test_rules_are_written_as_text_or_fields():
    assert sampling.FrameRule.of(None) == sampling.FrameRule.of("uniform") == sampling.UNIFORM
    assert sampling.FrameRule.of({"rule": "slow-fast", "fps": 2}) == sampling.FrameRule.of("slow-fast:fps=2")
    assert sampling.FrameRule.of("slow-fast-demo").indices(4, 30.0, 3).tolist() == [0, 1, 3]
    assert sampling.UNIFORM.indices(6, 30.0, 3).tolist() == [0, 2, 5]
    with pytest.raises(ConfigError, match=r"sampling\.rule = 'slow': must be one of 'uniform', 'slow-fast'"):
        sampling.FrameRule.of("slow")
    with pytest.raises(ConfigError, match=r"fps = 0\.0: must be above zero"):
        sampling.FrameRule.of("slow-fast:fps=0")
    with pytest.raises(ConfigError, match="not 3"):
        sampling.FrameRule.of(3)


def test_steady_takes_a_frame_a_second_and_thins_out_long_videos():
    assert sampling.steady(100, 25.0, 224).tolist() == [0, 25, 50, 75]
    assert sampling.steady(5, 0.3, 224).tolist() == [0, 1, 2, 3, 4]  # a step is never 0
    assert sampling.steady(300, 1.0, 224).tolist() == [int(300 / 224 * i) for i in range(224)]
    hour = sampling.steady(3600 * 25, 25.0, 2000)
    assert hour.tolist() == list(range(0, 3600 * 25, 3 * 25))  # 3600 // 1000 = 3
    assert sampling.FrameRule.of("steady:fps=1").indices(100, 25.0, 224).tolist() == [0, 25, 50, 75]


def test_nearest_prefers_the_earlier_on_a_tie():
    times_s = np.array([0.0, 1.0, 4.0])
    assert sampling.nearest(times_s, np.array([-1, 0, 0.5, 0.6, 2.5, 2.6, 9])).tolist() == [0, 0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: sampling.uniform_by_index(0, 8),
        lambda: sampling.uniform_by_index(8, 0),
        lambda: sampling.uniform_by_time(0.0, 8),
        lambda: sampling.every(float("nan"), 1.0),
        lambda: sampling.slow_fast(10, 0.0, 8),
        lambda: sampling.steady(10, 0.0, 8),
        lambda: sampling.steady(10, -1.0, 8),
        lambda: sampling.steady(10, float("nan"), 8),
        lambda: sampling.steady(0, 25.0, 8),
    ],
)
def test_impossible_numbers_are_refused(wrong):
    with pytest.raises(InputError, match=r"positive|at least 1"):
        wrong()
