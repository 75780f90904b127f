"""The shape of frames: oblong pixels, in every container that states them, and shapes that change in mid-stream."""

from __future__ import annotations

import json
import re
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from versions import needs_pyav_17_1

from mmllm.commands.info import info as info_command
from mmllm.video import _display_shape
from mmllm.video.opening import LimitExceeded, VideoLimits, VideoShapeChanged, open_video

CASE = Path(__file__).parents[1] / "data" / "cases" / "anamorphic_64_45.mp4"
COLOUR = (230, 60, 200)


def circle(height: int, width: int, aspect: Fraction = Fraction(1)) -> np.ndarray:
    """uint8 (H W 3) in stored pixels: what is shown as a circle, a third as wide as the picture is high."""
    y, x = np.mgrid[0:height, 0:width]
    inside = (float(aspect) * (x + 0.5 - width / 2)) ** 2 + (y + 0.5 - height / 2) ** 2 < (height / 3) ** 2
    picture = np.full((height, width, 3), 90, dtype=np.uint8)
    picture[inside] = COLOUR
    return picture


def extent(picture: np.ndarray) -> tuple[int, int]:
    """Height and width of the coloured circle."""
    rows, columns = np.nonzero(np.abs(picture.astype(int) - COLOUR).sum(axis=-1) < 150)
    return int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1


def assert_round(picture: np.ndarray) -> None:
    height, width = extent(picture)
    assert height > 20
    assert width / height == pytest.approx(1, abs=0.03)


def write(
    path: Path,
    size: tuple[int, int],
    aspect: Fraction | None = None,
    codec: str = "libx264",
    *,
    frames: int = 20,
    first: int = 0,
    degrees: int = 0,
    muxer: str | None = None,
) -> Path:
    """A video of a circle; the pixels' aspect is written by the encoder and, where it has a field, by the container."""
    import av

    picture = circle(*size, aspect or Fraction(1))
    options = {"libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"}}.get(codec, {"g": "10", "bf": "2"})
    with av.open(str(path), "w", format=muxer) as container:
        stream = container.add_stream(codec, rate=25, options={} if codec == "dvvideo" else options)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if degrees:
            stream.set_display_rotation(degrees)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture)
            frame.pts, frame.time_base = first + number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def with_pasp(path: Path, across: int, down: int) -> Path:
    """An mp4 file whose `pasp` atom is overwritten."""
    data = path.read_bytes()
    assert data.count(b"pasp") == 1
    numbers = across.to_bytes(4, "big") + down.to_bytes(4, "big")
    path.write_bytes(re.sub(rb"pasp.{8}", lambda _: b"pasp" + numbers, data, flags=re.DOTALL))
    return path


# --- Oblong pixels -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [None, 96, (100, 178)])
def test_the_shared_case_shows_a_circle(size):
    with open_video(CASE) as video:
        assert (video.info.width, video.info.height) == (512, 288)
        assert (video.info.coded_width, video.info.coded_height, video.info.pixel_aspect) == (360, 288, (64, 45))
        frame = video.frames_by_index([25], size=size).frames[0]
    assert frame.shape[:2] == ((288, 512) if size is None else (96, 171) if size == 96 else size)
    assert_round(frame)


FILES = {
    "mp4": ("a.mp4", "libx264", (288, 360), Fraction(64, 45), (288, 512)),
    "mkv": ("a.mkv", "libx264", (288, 360), Fraction(64, 45), (288, 512)),
    "ts": ("a.ts", "libx264", (576, 720), Fraction(16, 11), (576, 1048)),
    "hevc-ts": ("b.ts", "libx265", (240, 352), Fraction(10, 11), (240, 320)),
    "mpeg2": ("a.mpg", "mpeg2video", (576, 720), Fraction(64, 45), (576, 1024)),
    "mpeg4-avi": ("a.avi", "mpeg4", (480, 720), Fraction(8, 9), (480, 640)),
    "dv-mov": ("a.mov", "dvvideo", (576, 720), Fraction(64, 45), (576, 1024)),
    "dv-avi": ("dv.avi", "dvvideo", (576, 720), Fraction(16, 15), (576, 768)),
    "raw": ("a.h264", "libx264", (288, 352), Fraction(12, 11), (288, 384)),
}


@pytest.mark.parametrize("kind", FILES)
def test_every_container_that_states_oblong_pixels(kind, tmp_path):
    name, codec, size, aspect, shown = FILES[kind]
    with open_video(write(tmp_path / name, size, aspect, codec)) as video:
        assert (video.info.height, video.info.width) == shown
        assert (video.info.coded_height, video.info.coded_width) == size
        frames = video.frames_by_index([0, 10, 19]).frames
    assert frames.shape == (3, *shown, 3)
    for frame in frames:
        assert_round(frame)


def test_display_size_of_webm(tmp_path):
    """WebM states the width and height of the shown picture, and nothing in the coded stream does."""
    path = write(tmp_path / "a.webm", (288, 320), Fraction(4, 3), "libvpx-vp9")
    data = path.read_bytes()
    # The track's number of eleven bytes gives way to DisplayWidth and DisplayHeight at the end of its Video element.
    data, numbers = re.subn(rb"\x73\xc5\x88.{8}", b"", data, count=1, flags=re.DOTALL)
    stored = b"\xb0\x82\x01\x40\xba\x82\x01\x20"
    assert numbers == data.count(b"\xe0\x88" + stored) == 1
    shown = b"\x54\xb0\x82" + (426).to_bytes(2, "big") + b"\x54\xba\x83" + (288).to_bytes(3, "big")
    path.write_bytes(data.replace(b"\xe0\x88" + stored, b"\xe0\x93" + stored + shown))
    with open_video(path) as video:
        assert (video.info.width, video.info.height) == (426, 288)
        assert_round(video.frames_by_index([5]).frames[0])


def test_the_containers_aspect_comes_before_the_streams(tmp_path):
    path = with_pasp(write(tmp_path / "a.mp4", (240, 320), Fraction(2, 1)), 4, 3)
    with open_video(path) as video:
        assert (video.info.width, video.info.height, video.info.pixel_aspect) == (426, 240, (4, 3))


@pytest.mark.parametrize(("across", "down"), [(0, 1), (1, 0), (1000, 1), (1, 1000), (0, 0)])
def test_impossible_aspects_are_ignored(across, down, tmp_path):
    path = with_pasp(write(tmp_path / "a.mp4", (240, 320), Fraction(2, 1)), across, down)
    with open_video(path) as video:
        # What the container says cannot be meant, so the coded stream's 2:1 counts.
        assert (video.info.width, video.info.height) in ((640, 240), (320, 240))
        assert len(video.sample_uniform(2)) == 2


def test_usable_aspects():
    for aspect in (None, Fraction(0), Fraction(-1), Fraction(11), Fraction(1, 11), Fraction(1000)):
        assert _display_shape.usable(aspect) is None
    for aspect in (Fraction(1), Fraction(10), Fraction(1, 10), Fraction(64, 45)):
        assert _display_shape.usable(aspect) == aspect


@pytest.mark.parametrize(
    ("width", "aspect", "shown"),
    [
        (720, "64/45", 1024),
        (720, "16/15", 768),
        (720, "32/27", 854),
        (720, "10/11", 654),
        (33, "1", 33),
        (33, "50/49", 33),
    ],
)
def test_widths_are_rounded_to_even(width, aspect, shown):
    assert _display_shape.shown_size(480, width, Fraction(aspect)) == (480, shown)


@needs_pyav_17_1
def test_the_aspect_is_applied_before_rotation(tmp_path):
    path = write(tmp_path / "turned.mp4", (288, 360), Fraction(64, 45), degrees=90)
    with open_video(path) as video:
        assert (video.info.width, video.info.height) == (288, 512)
        assert (video.info.coded_width, video.info.coded_height) == (360, 288)
        assert_round(video.frames_by_index([3]).frames[0])
        small = video.frames_by_index([3], size=144).frames[0]
        assert small.shape == (256, 144, 3)
        assert_round(small)


def test_limits_hold_for_the_shown_size(tmp_path):
    path = write(tmp_path / "a.mp4", (240, 320), Fraction(4, 1))
    with open_video(path, limits=VideoLimits(pixels=320 * 240 * 4)) as video:
        assert video.info.width == 1280
    with pytest.raises(LimitExceeded, match="1280 x 240"):
        open_video(path, limits=VideoLimits(pixels=320 * 240 * 4 - 1))


def test_frames_are_scaled_once(tmp_path, monkeypatch):
    from mmllm.video._pictures import PictureMaker

    sizes = []
    converted = PictureMaker._converted
    monkeypatch.setattr(
        PictureMaker, "_converted", lambda self, frame, *size: sizes.append(size[:3]) or converted(self, frame, *size)
    )
    with open_video(CASE) as video:
        video.frames_by_index([0, 1], size=(100, 178))
    assert sizes == [(100, 178, "rgb24")] * 2


def test_info_prints_both_sizes(capsys):
    assert info_command((CASE,)) == 0
    output = capsys.readouterr().out
    assert "512 x 288, h264" in output
    assert "coded as 360 x 288 with pixels of 64:45" in output
    assert info_command((CASE,), json=True) == 0
    row = json.loads(capsys.readouterr().out)
    assert [row[key] for key in ("width", "height", "coded_width", "coded_height")] == [512, 288, 360, 288]


@needs_pyav_17_1
def test_decord_gives_the_same_shape(tmp_path):
    pytest.importorskip("decord")
    turned = write(tmp_path / "turned.mp4", (288, 360), Fraction(64, 45), degrees=90)
    for path in (CASE, turned):
        with open_video(path) as video:
            expected = video.frames_by_index([0, 9]).frames
        with open_video(path, "decord") as video:
            frames = video.frames_by_index([0, 9]).frames
            assert video.frames_by_index([4], size=(60, 60)).frames.shape == (1, 60, 60, 3)
        assert frames.shape == expected.shape
        assert np.abs(frames.astype(int) - expected).mean() < 2
        assert_round(frames[1])


# --- Shapes that change --------------------------------------------------------------------------------------------


def joined(tmp_path: Path, codec: str, *parts: tuple[tuple[int, int], Fraction]) -> Path:
    """Transport streams of 20 frames each, one after the other."""
    path = tmp_path / f"joined-{codec}.ts"
    data = b""
    for number, (size, aspect) in enumerate(parts):
        part = write(tmp_path / f"{number}.ts", size, aspect, codec, first=25 * number, muxer="mpegts")
        data += part.read_bytes()
    path.write_bytes(data)
    return path


def bars(picture: np.ndarray) -> tuple[int, int]:
    """Black rows above the picture, black columns on its left."""
    rows, columns = np.nonzero(picture.max(axis=-1) > 45)
    return int(rows.min()), int(columns.min())


ONE = Fraction(1)
CHANGES = {
    "upright": ((120, 160), ONE, (160, 120), ONE, (120, 160), (0, 35)),
    "wider": ((120, 160), ONE, (90, 160), ONE, (120, 160), (15, 0)),
    "larger": ((120, 160), ONE, (240, 320), ONE, (120, 160), (0, 0)),
    "aspect": ((144, 176), Fraction(12, 11), (144, 176), Fraction(16, 11), (144, 192), (18, 0)),
    "both": ((120, 160), ONE, (144, 176), Fraction(16, 11), (120, 160), (15, 0)),
}


@needs_pyav_17_1
@pytest.mark.parametrize("codec", ["libx264", "mpeg2video", "libx265"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_shape_is_fitted_into_the_first(change, codec, tmp_path):
    size, aspect, other_size, other_aspect, shown, black = CHANGES[change]
    path = joined(tmp_path, codec, (size, aspect), (other_size, other_aspect))
    with warnings.catch_warnings(record=True) as records:
        warnings.simplefilter("always")
        with open_video(path) as video:
            assert (video.info.height, video.info.width) == shown
            everything = np.concatenate([clip.frames for clip in video.iterate(7)])
            assert len(everything) == 40
            for number, frame in enumerate(everything):
                assert_round(frame)
                np.testing.assert_allclose(bars(frame), black if number >= 20 else (0, 0), atol=2)
            np.testing.assert_array_equal(video.frames_by_index([2, 19, 20, 33]).frames, everything[[2, 19, 20, 33]])
            doubled = video.frames_by_index([33], size=(2 * shown[0], 2 * shown[1])).frames[0]
            assert_round(doubled)
            np.testing.assert_allclose(bars(doubled), 2 * np.array(black), atol=3)
    changes = [str(record.message) for record in records if record.category is VideoShapeChanged]
    assert len(changes) == 1
    assert "black bars" in changes[0]
    assert f"{other_size[1]} x {other_size[0]}" in changes[0]


def test_decord_refuses_a_change_of_shape(tmp_path):
    pytest.importorskip("decord")
    from mmllm.video.opening import VideoDecodeError

    path = joined(tmp_path, "mpeg2video", ((120, 160), ONE), ((160, 120), ONE))
    with open_video(path, "decord") as video, pytest.raises(VideoDecodeError, match=r"change their shape.*pyav"):
        video.frames_by_index([0])


@pytest.mark.parametrize(
    ("size", "box", "target", "place"),
    [
        ((100, 100), (100, 200), (100, 200), (0, 50, 100, 100)),
        ((100, 200), (100, 100), (100, 100), (25, 0, 50, 100)),
        ((50, 100), (100, 200), (10, 20), (0, 0, 10, 20)),
        ((100, 100), (100, 200), (50, 50), (0, 12, 50, 25)),
        ((1, 5000), (100, 100), (10, 10), (4, 0, 1, 10)),
    ],
)
def test_place_in_the_box(size, box, target, place):
    found = _display_shape.fitted(size, box, target)
    assert (found.top, found.left, found.height, found.width) == place
