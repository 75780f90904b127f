"""Streams to follow: containers that can be read while they grow."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def grey_frames(count: int, size: int = 64) -> np.ndarray:
    """uint8, T S S 3: each frame has the grey level 4 t + 20."""
    return np.stack([np.full((size, size, 3), 20 + 4 * (number % 50), dtype=np.uint8) for number in range(count)])


def numbers_of(frames: list[np.ndarray]) -> list[int]:
    """Which of `grey_frames` these are."""
    return [round((float(frame.mean()) - 20) / 4) for frame in frames]


def write_stream(
    path: Path | str, frames: np.ndarray, fps: int, *, form: str = "mpegts", stamps_s: list[float] | None = None
) -> None:
    """Writes frames (T S S 3) as H.264.

    Args:
        path: the file, or a named pipe.
        frames: uint8.
        fps: their rate.
        form: FFmpeg's name of the container.
        stamps_s: their times, if they are others than the rate's.
    """
    settings = {"movflags": "frag_keyframe+empty_moov+default_base_moof"} if form == "mp4" else {}
    with av.open(str(path), "w", format=form, options=settings) as container:
        stream = container.add_stream(
            "libx264", rate=fps, options={"preset": "ultrafast", "tune": "zerolatency", "g": "5"}
        )
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", Fraction(1, 1000)
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            stamp_s = number / fps if stamps_s is None else stamps_s[number]
            picture.pts, picture.time_base = round(1000 * stamp_s), Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
