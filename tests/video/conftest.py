"""Clips made for the video tests: each frame has its number drawn into its pixels."""

from __future__ import annotations

import importlib.util
import warnings
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest

SHARED_VIDEOS = Path(__file__).resolve().parents[3] / "shared" / "data" / "videos"
BITS = 16


def picture_of(number: int, height: int, width: int) -> np.ndarray:
    """A grey ramp that moves, and over it `number` as a row of black and white blocks, lowest bit first."""
    y, x = np.mgrid[0:height, 0:width]
    ramp = (x + 2 * y + 5 * number) % 128 + 64
    picture = np.stack([ramp, np.roll(ramp, 7), 255 - ramp], axis=-1).astype(np.uint8)
    block = width // BITS
    for bit in range(BITS):
        picture[: height // 2, bit * block : (bit + 1) * block] = 255 if number >> bit & 1 else 0
    return picture


def number_in(picture: np.ndarray) -> int:
    """The number drawn into a picture, whatever its size and coding."""
    height, width = picture.shape[:2]
    block = width / BITS
    row = picture[height // 8 : height * 3 // 8].mean(axis=(0, 2))
    return sum(
        (row[int((bit + 0.3) * block) : int((bit + 0.7) * block) + 1].mean() > 128) << bit for bit in range(BITS)
    )


def write_clip(
    path: Path,
    *,
    codec: str = "libx264",
    frames: int = 60,
    size: tuple[int, int] = (64, 128),
    rate: int = 30,
    pts: list[int] | None = None,
    time_base: Fraction | None = None,
    pixel_format: str = "yuv420p",
    options: dict[str, str] | None = None,
    pictures=None,
    container_format: str | None = None,
) -> Path:
    """A video file of numbered pictures; `pts` are in units of `time_base`."""
    import av

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with av.open(str(path), "w", format=container_format) as container:
            stream = container.add_stream(codec, rate=rate, options=options or {})
            stream.height, stream.width = size
            stream.pix_fmt = pixel_format
            stream.codec_context.thread_count = 1
            if time_base is not None:
                stream.codec_context.time_base = time_base
            for number in range(frames):
                array = picture_of(number, *size) if pictures is None else pictures(number)
                channels = {3: "rgb24", 4: "rgba"}[array.shape[2]]
                frame = av.VideoFrame.from_ndarray(array, format=channels)
                frame.pts = number if pts is None else pts[number]
                frame.time_base = time_base or Fraction(1, rate)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="session")
def make_clip(tmp_path_factory):
    """Makes a clip of numbered pictures, once for each name: `make_clip("a.mp4", codec="libx264", ...)`."""
    folder, path_by_name = tmp_path_factory.mktemp("videos"), {}

    def make(name: str, **fields) -> Path:
        if name not in path_by_name:
            path_by_name[name] = write_clip(folder / name, **fields)
        return path_by_name[name]

    return make


@pytest.fixture(scope="session")
def b_frames(make_clip) -> Path:
    """120 frames of H.264 at 30 a second, B-frames, a key frame every 24."""
    return make_clip("b_frames.mp4", frames=120, options={"g": "24", "bf": "3", "preset": "veryfast"})


@pytest.fixture(scope="session")
def read_number():
    """Reads the number drawn into a picture."""
    return number_in


@pytest.fixture(scope="session")
def picture():
    """Makes the picture of a number."""
    return picture_of


@pytest.fixture(scope="session")
def shared_videos() -> Path:
    """The folder of real clips."""
    if not SHARED_VIDEOS.is_dir():
        pytest.skip("no ../shared/data/videos beside the repository")
    return SHARED_VIDEOS


@pytest.fixture(scope="session")
def film():
    """Makes the bytes of a film whose packets get chosen times: see `film` in `clock_files.py`."""
    specification = importlib.util.spec_from_file_location("clock_files", Path(__file__).with_name("clock_files.py"))
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return partial(module.film, picture=picture_of)
