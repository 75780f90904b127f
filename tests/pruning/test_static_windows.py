"""Windows against all ways to cut a short video, and what is known of a video that stands still."""

import numpy as np
import pytest
from plain_merging import gain, most_saved

from mmllm.pruning.static_windows import static_windows


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("most", [1, 2, 3, 1024])
def test_no_other_cut_saves_more(seed, most):
    generator = np.random.default_rng(seed)
    static = generator.random((int(generator.integers(1, 9)), 6)) < generator.choice([0.3, 0.6, 0.9])
    windows, saved = static_windows(static, most)
    assert saved == sum(gain(static, *window) for window in windows) == most_saved(static, most)
    assert [frame for first, last in windows for frame in range(first, last + 1)] == list(range(len(static) + 1))
    assert all(last - first < max(most, 1) for first, last in windows)
    assert all(gain(static, *window) for window in windows if window[0] < window[1])


def test_a_video_that_stands_still_is_one_window():
    assert static_windows(np.ones((9, 4), dtype=bool), 1024) == ([(0, 9)], 36)
    assert static_windows(np.ones((9, 4), dtype=bool), 4)[1] == 28  # windows of 4, 4 and 2 frames
    assert static_windows(np.zeros((2, 4), dtype=bool), 1024) == ([(0, 0), (1, 1), (2, 2)], 0)
    assert static_windows(np.zeros((0, 4), dtype=bool), 1024) == ([(0, 0)], 0)


def test_of_equal_gains_the_shorter_window():
    static = np.array([[True, True], [True, False]])  # 1 * 2 for two frames, 2 * 1 for three
    assert static_windows(static, 1024) == ([(0, 1), (2, 2)], 2)
