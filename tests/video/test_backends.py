"""decord and torchcodec behind the same interface: the same frames, in a process that can be killed."""

from __future__ import annotations

import glob
import importlib.util
import os
import subprocess
import sys
import tempfile

import numpy as np
import pytest

from mmllm.errors import InputError
from mmllm.video.opening import VideoDecodeError, VideoError, VideoOpenError, open_video

CLIPS = {
    "h264": ("b_h264.mp4", {"codec": "libx264", "options": {"g": "24", "bf": "3", "preset": "veryfast"}}),
    "hevc": ("b_hevc.mp4", {"codec": "libx265", "options": {"x265-params": "keyint=20:bframes=4:log-level=none"}}),
    "vp9": ("b_vp9.webm", {"codec": "libvpx-vp9", "options": {"g": "20", "deadline": "realtime", "cpu-used": "8"}}),
    "av1": ("b_av1.mp4", {"codec": "libsvtav1", "options": {"g": "20", "preset": "12"}}),
}


def loads(backend: str) -> bool:
    """Whether a backend is here and finds what it needs."""
    if importlib.util.find_spec(backend) is None:
        return False
    code = "import torchcodec.decoders" if backend == "torchcodec" else "import decord"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module", params=["decord", "torchcodec"])
def backend(request):
    if not loads(request.param):
        pytest.skip(f"{request.param} is not installed, or does not find its FFmpeg")
    return request.param


@pytest.mark.parametrize("codec", CLIPS)
def test_index_drawn_into_the_pixels_comes_back(codec, backend, make_clip, read_number):
    name, fields = CLIPS[codec]
    path = make_clip(name, frames=75, rate=25, **fields)
    if (backend, codec) == ("decord", "av1"):
        with pytest.raises(VideoOpenError, match="no decoder for av1"):
            open_video(path, backend)
        return
    order = np.random.default_rng(0).permutation(75)
    with open_video(path) as video:
        reference = video.frames_by_index(order)
    with open_video(path, backend) as video:
        assert video.info.backend == backend
        for index in order[:3]:
            assert read_number(video.frames_by_index([index]).frames[0]) == index
        clip = video.frames_by_index(order)
        assert [read_number(frame) for frame in clip.frames] == order.tolist()
        np.testing.assert_array_equal(clip.times_s, reference.times_s)
        difference = np.abs(clip.frames.astype(int) - reference.frames)
        assert difference.mean() < 2
        assert difference.max() <= (0 if backend == "decord" else 16)
        small = video.frames_at([0.0, 1.0, 2.96], size=32)
        assert small.frames.shape == (3, 32, 64, 3)
        assert [read_number(frame) for frame in small.frames] == [0, 25, 74]


def test_all_frames_bytes_and_cleaning_up(backend, b_frames, read_number):
    before = set(glob.glob(os.path.join(tempfile.gettempdir(), "mmllm-*")))
    with open_video(b_frames.read_bytes(), backend) as video:
        numbers = [read_number(frame) for clip in video.iterate(50, size=(32, 64)) for frame in clip.frames]
        assert numbers == list(range(120))
        child = video._child.pid
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    assert set(glob.glob(os.path.join(tempfile.gettempdir(), "mmllm-*"))) == before


def test_rotation(backend, shared_videos):
    for name in ("decord__video_90.mov", "decord__video_180.mov", "decord__video_270.mov"):
        with open_video(shared_videos / name) as video:
            reference = video.frames_by_index([0, 2])
        with open_video(shared_videos / name, backend) as video:
            clip = video.frames_by_index([0, 2])
        assert np.abs(clip.frames.astype(int) - reference.frames).mean() < 2


def test_every_real_clip_gives_the_same_frames_or_a_typed_error(backend, shared_videos):
    names = (
        "androidx__sample_sef_slow_motion.mp4",
        "androidx__sample_rotate_and_reflect.mp4",
        "decord__corrupted.mp4",
        "mmaction2__test.avi",
        "torchcodec__h265_video.mp4",
    )
    for name in names:
        with open_video(shared_videos / name) as video:
            middle = len(video) // 2
            reference = video.frames_by_index([0, middle, -1])
        try:
            with open_video(shared_videos / name, backend) as video:
                clip = video.frames_by_index([0, middle, -1])
        except VideoError as problem:
            assert "pyav" in str(problem), name  # noqa: PT017
        else:
            assert np.abs(clip.frames.astype(int) - reference.frames).mean() < 4, name


def test_hostile_files_never_reach_the_other_decoder(backend, tmp_path):
    path = tmp_path / "list.mp4"
    path.write_text("ffconcat version 1.0\nfile other.mp4\n")
    with pytest.raises(VideoOpenError, match="not a video"):
        open_video(path, backend)


def test_a_backend_that_is_not_installed(b_frames, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'mmllm\[decord\]'"):
        open_video(b_frames, "decord")


def test_a_backend_that_cannot_load_says_why(b_frames, tmp_path, monkeypatch):
    (tmp_path / "torchcodec").mkdir()
    (tmp_path / "torchcodec" / "__init__.py").write_text("raise RuntimeError('no FFmpeg found')")
    monkeypatch.syspath_prepend(tmp_path)
    with open_video(b_frames, "torchcodec") as video, pytest.raises(VideoDecodeError, match="no FFmpeg found"):
        video.frames_by_index([0])
