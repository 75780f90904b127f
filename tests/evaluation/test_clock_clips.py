"""The clips of `check-times`: their files have the times that are said of them, and each frame says its number."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmllm.evaluation.clock_clips import SIZE, TIMELINES, clock_clip, frames_of, render
from mmllm.evaluation.clock_requests import CASES, requests
from mmllm.evaluation.clock_strip import CELLS, MOST_FRAMES, draw_strip, read_strip
from mmllm.video.opening import open_video


@given(
    number=st.integers(0, MOST_FRAMES - 1),
    side=st.sampled_from([32, 64, 100, 224]),
    noise=st.floats(0, 12),
    scale=st.floats(0.01, 3),
    seed=st.integers(0, 100),
)
def test_a_number_is_read_after_noise_and_normalising(number, side, noise, scale, seed):
    random = np.random.default_rng(seed)
    picture = random.integers(40, 200, (side, side, 3)).astype(np.uint8)
    draw_strip(picture, number)
    seen = (picture.astype(np.float32) + random.normal(0, noise, picture.shape) - 120) * scale
    assert read_strip(seen) == number
    assert read_strip(seen.mean(-1)) == number


def test_pictures_without_a_strip_have_no_number():
    random = np.random.default_rng(0)
    assert all(read_strip(random.integers(0, 255, (64, 64, 3))) is None for _ in range(50))
    assert read_strip(np.zeros((64, 64, 3))) is None
    assert read_strip(np.full((64, 64, 3), np.nan)) is None
    assert read_strip(np.zeros((CELLS - 1, 64))) is None
    picture = np.zeros((64, 64, 3), np.uint8)
    draw_strip(picture, 5)
    picture[:8, 40:44] = 255 - picture[:8, 40:44]  # one cell is wrong
    assert read_strip(picture) is None
    mean = np.zeros((64, 64, 3))
    for number in (3, 4):
        other = np.zeros((64, 64, 3), np.uint8)
        draw_strip(other, number)
        mean += other / 2.0
    assert read_strip(mean) not in (3, 4)


@pytest.mark.parametrize("kind", TIMELINES)
def test_a_file_has_the_times_that_are_said_of_it(tmp_path, kind):
    clip = clock_clip(tmp_path, kind, 3)
    render(clip)
    with open_video(str(clip.path)) as video:
        assert np.abs(video.times_s - clip.times_s).max() < 1e-6
        assert video.info.duration_s == pytest.approx(clip.duration_s, abs=1e-3)
        assert video.info.average_fps == pytest.approx(clip.average_fps, rel=2e-3)
        small = video.frames_by_index(range(len(video)), size=48)
    assert [read_strip(frame) for frame in small.frames] == list(range(len(clip.times_s)))
    frames = frames_of(clip)
    assert frames.shape == (len(clip.times_s), SIZE, SIZE, 3)
    (event,) = clip.events
    assert event.span.start_s in clip.times_s
    assert event.span.end_s in clip.times_s
    assert abs(event.span.start_s - round(event.span.start_s)) > 0.19
    before, during = (frames[np.searchsorted(clip.times_s, event.span.start_s) + at].astype(int) for at in (-1, 0))
    assert np.abs(before - during)[SIZE // 8 + 2 :].max() > 60  # the shape appears
    written = clip.path.stat().st_mtime_ns
    render(clip)
    assert clip.path.stat().st_mtime_ns == written
    assert clock_clip(tmp_path, kind, 3).events == clip.events != clock_clip(tmp_path, kind, 4).events


def test_requests_go_through_all_cases_and_ask_for_what_is_seen(tmp_path):
    asked = list(requests(tmp_path, 2))
    assert [request.case for request in asked] == [*CASES, *CASES]
    assert not list(tmp_path.iterdir())
    for request in asked:
        situation = request.situation()
        questions = dict(request.questions(counter=True))
        begin, end = request.start_s or 0.0, request.end_s or request.clip.duration_s
        assert len(questions) == 2
        assert all(begin <= span.start_s < span.end_s <= end for span in questions.values())
        assert situation.name == request.case
        assert (np.diff(situation.chosen) > 0).all()
        counter, span = list(questions.items())[1]
        assert request.clip.counter + int(span.start_s) == int(counter.split()[-1].rstrip("?"))
    assert {request.start_s is not None for request in asked if request.case == "cut range"} == {True}
