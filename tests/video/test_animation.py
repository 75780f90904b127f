"""Animated WebP and PNG images are videos whose pictures have their own times."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmllm.errors import InputError
from mmllm.video.opening import (
    LimitExceeded,
    VideoDecodeError,
    VideoError,
    VideoLimits,
    VideoOpenError,
    VideoTruncated,
    open_video,
    sample_uniform,
)

CASES = Path(__file__).resolve().parents[1] / "data" / "cases"
DELAYS_MS = [100, 250, 40, 3000]


def animated(path: Path, picture, delays_ms: list[int], **options) -> Path:
    images = [Image.fromarray(picture(number, 64, 128)) for number in range(len(delays_ms))]
    images[0].save(path, save_all=True, append_images=images[1:], duration=delays_ms, loop=0, **options)
    return path


@pytest.mark.parametrize("suffix", ["webp", "png"])
def test_pictures_and_times(suffix, tmp_path, picture, read_number):
    path = animated(tmp_path / f"a.{suffix}", picture, DELAYS_MS, **({"lossless": True} if suffix == "webp" else {}))
    for source in (path, path.read_bytes()):
        with open_video(source) as video:
            assert video.info.num_frames == 4
            assert video.info.duration_s == pytest.approx(3.39)
            assert (video.info.width, video.info.height) == (128, 64)
            clip = video.frames_by_index([3, 0, 1, 2])
            assert [read_number(frame) for frame in clip.frames] == [3, 0, 1, 2]
            np.testing.assert_allclose(clip.times_s, [0.39, 0, 0.1, 0.35])
            assert [read_number(frame) for frame in video.frames_at([0.2, 3.0]).frames] == [1, 3]
            assert sum(len(part) for part in video.iterate(3)) == 4


def test_the_shared_case():
    with open_video(CASES / "animated.webp") as video:
        assert video.info.num_frames == 6
        assert video.info.duration_s == pytest.approx(4.4)
        np.testing.assert_allclose(video.times_s, [0, 0.1, 0.2, 1.2, 1.3, 1.4])
    assert len(sample_uniform(CASES / "animated.webp", 3, size=32)) == 3


def test_no_delay_counts_as_in_browsers(tmp_path, picture):
    with open_video(animated(tmp_path / "a.webp", picture, [0, 5, 200], lossless=True)) as video:
        np.testing.assert_allclose(video.times_s, [0, 0.1, 0.2])
        assert video.info.duration_s == pytest.approx(0.4)


def test_transparent_pixels_are_black(tmp_path):
    images = [Image.new("RGBA", (32, 32), (255, 255, 255, alpha)) for alpha in (0, 255)]
    images[0].save(tmp_path / "a.png", save_all=True, append_images=images[1:], duration=100)
    assert sample_uniform(tmp_path / "a.png", 2).frames.mean((1, 2, 3)).tolist() == [0, 255]


def test_a_picture_for_other_viewers_is_left_out(tmp_path, picture, read_number):
    images = [Image.fromarray(picture(number, 64, 128)) for number in range(4)]
    images[0].save(tmp_path / "a.png", save_all=True, append_images=images[1:], duration=100, default_image=True)
    with open_video(tmp_path / "a.png") as video:
        clip = video.frames_by_index([0, 1, 2])
        assert (len(video), [read_number(frame) for frame in clip.frames]) == (3, [1, 2, 3])


def test_a_still_picture_is_no_video(tmp_path, picture):
    for suffix in ("webp", "png"):
        Image.fromarray(picture(0, 64, 128)).save(tmp_path / f"a.{suffix}")
        with pytest.raises(VideoOpenError, match="image"):
            open_video(tmp_path / f"a.{suffix}")


@pytest.mark.filterwarnings("ignore::mmllm.video.errors.VideoTruncated")
@pytest.mark.parametrize("suffix", ["webp", "png"])
def test_damage(suffix, tmp_path, picture):
    whole = animated(tmp_path / f"a.{suffix}", picture, DELAYS_MS * 3).read_bytes()
    generator = np.random.default_rng(0)
    for cut in range(1, 20):
        data = bytearray(whole[: len(whole) * cut // 20])
        for _ in range(cut % 3):
            data[generator.integers(len(data))] = generator.integers(256)
        with contextlib.suppress(VideoError), open_video(bytes(data)) as video:
            assert len(video.sample_uniform(3)) == 3


def test_a_cut_is_told(tmp_path, picture):
    whole = animated(tmp_path / "a.png", picture, DELAYS_MS * 3).read_bytes()
    with pytest.warns(VideoTruncated, match="of 12 declared frames"), open_video(whole[: len(whole) // 2]) as video:
        assert 0 < len(video) < 12
    with pytest.raises(VideoDecodeError, match="cut short"):
        open_video(whole[: len(whole) // 2], strict=True)


def test_a_large_canvas_is_refused(tmp_path, picture):
    data = bytearray(animated(tmp_path / "a.webp", picture, DELAYS_MS).read_bytes())
    data[24:30] = b"\xff\xff\x00" * 2
    with pytest.raises(LimitExceeded, match="65536 x 65536"):
        open_video(bytes(data))


def test_limits_and_options(tmp_path, picture):
    path = animated(tmp_path / "a.png", picture, DELAYS_MS)
    for limits in (VideoLimits(frames=3), VideoLimits(pixels=999), VideoLimits(seconds=3)):
        with pytest.raises(LimitExceeded):
            open_video(path, limits=limits)
    with pytest.raises(InputError, match="stream 0 only"):
        open_video(path, stream=1)
    with pytest.raises(InputError, match="'decord' does not read animated images"):
        open_video(path, "decord")
    video = open_video(path)
    video.close()
    with pytest.raises(VideoDecodeError, match="closed"):
        video.frames_by_index([0])
