"""Times of frames that a model takes for evenly spaced: unchanged where they are, else the true ones."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmllm.times.answers import Answer, Span
from mmllm.times.frame_clock import clock_of_clip
from mmllm.tokens import VideoClip


def clip_of(times_s, duration_s, indices=None):
    frames = np.zeros((len(times_s), 2, 2, 3), np.uint8)
    metadata = {} if indices is None else {"indices": list(indices)}
    return VideoClip(frames=frames, times_s=np.asarray(times_s, float), duration_s=duration_s, metadata=metadata)


def clock_of(times_s, duration_s, indices=None, token_duration_s=None):
    clip = clip_of(times_s, duration_s, indices)
    return clock_of_clip(clip, clip.times_s, token_duration_s or duration_s)


@given(count=st.integers(2, 2000), fps=st.sampled_from([1.0, 5.0, 25.0, 29.97]), frames=st.integers(2, 100))
def test_even_frames_of_a_whole_video_need_no_clock(count, fps, frames):
    indices = np.rint(np.linspace(0, count - 1, frames)).astype(int)
    assert clock_of(indices / fps, count / fps, indices) is None


def test_a_part_of_a_video():
    indices = np.arange(100, 200, 2)
    clock = clock_of(indices / 10, 60.0, indices)
    assert clock.seconds(0.0) == pytest.approx(10.0)
    assert clock.seconds(30.0) == pytest.approx(15.0, abs=0.11)
    assert clock.seconds(60.0) == pytest.approx(19.9, abs=0.11)
    assert clock.question("after <15>?") == f"after <{clock.question('<15>')[1:-1]}>?"
    assert float(clock.question("<15>")[1:-1]) == pytest.approx(30.0, abs=0.6)


def test_a_picture_that_begins_late():
    clock = clock_of(np.arange(4, 24, 0.5), 24.0)
    assert clock.seconds(0.0) == pytest.approx(4.0)
    assert clock.seconds(24.0) == pytest.approx(24.0)
    assert clock.seconds(12.0) == pytest.approx(14.0)


def test_uneven_frames_and_a_length_of_an_annotation():
    times_s = np.concatenate([np.arange(0, 5, 0.1), np.arange(5, 25, 1.0)])
    clock = clock_of(times_s, 25.0, np.arange(70), token_duration_s=50.0)
    for place in (0, 10, 49, 60, 69):
        assert clock.seconds(50.0 * place / 70) == pytest.approx(times_s[place])


def test_answers_have_the_seconds_of_the_video_and_their_raw_text_stays():
    clock = clock_of(np.arange(4, 24, 0.5), 24.0)
    answer = Answer(text="it spins until <12>", spans=(Span(0.0, 12.0),), raw="<t1> <t2>", fallback=False)
    moved = clock.answer(answer)
    assert moved.text == "it spins until <14.0>"
    assert [moved.spans[0].start_s, moved.spans[0].end_s] == pytest.approx([4.0, 14.0])
    assert moved.raw == answer.raw
    silent = Answer(text="?", spans=(Span(0.0, 24.0),), raw="?", fallback=True)
    assert clock.answer(silent) == silent
    assert clock.text("<12>", template="{} s") == "14.0 s"


@given(
    steps=st.lists(st.floats(0.05, 5.0), min_size=2, max_size=40),
    start_s=st.floats(0.0, 20.0),
    tail_s=st.floats(0.0, 20.0),
    share=st.floats(0.0, 1.0),
)
def test_there_and_back(steps, start_s, tail_s, share):
    times_s = start_s + np.cumsum(steps)
    clock = clock_of(times_s, float(times_s[-1]) + tail_s + 0.1)
    if clock is None:
        return
    asked_s = times_s[0] + share * (times_s[-1] - times_s[0])
    even_s = float(clock.question(f"<{asked_s:.6f}>")[1:-1])
    assert clock.seconds(even_s) == pytest.approx(asked_s, abs=0.25)
    assert np.all(np.diff(clock.shown_s) >= 0)


@pytest.mark.parametrize("times_s", [[0.0], [3.0, 3.0, 3.0]])
def test_one_picture_has_no_clock(times_s):
    assert clock_of(times_s, 10.0) is None
