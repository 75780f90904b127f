"""What is known of a video without looking at its pictures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """A video's length, rate, size and coding, as they are after opening it rather than as its header claims."""

    source: str
    """Path, or a description of where the bytes came from."""
    backend: str
    container: str
    codec: str
    pixel_format: str
    width: int
    """Pixels, after rotation."""
    height: int
    """Pixels, after rotation."""
    duration_s: float
    """Seconds from the first shown frame to the end of the last one."""
    start_s: float
    """Presentation time of the first shown frame in the file; times of this package are counted from it."""
    num_frames: int | None
    """Frames that can be shown. From the packets, not the header; None where only decoding could tell."""
    average_fps: float
    variable_rate: bool
    """True where index / average_fps is wrong by more than a frame somewhere, so that only times are right."""
    time_estimated: bool
    """True where the file has no usable timestamps: times then follow from the order and the average rate."""
    hdr: bool
    """True for PQ and HLG pictures, which look washed out as plain RGB."""
    rotation: int
    """Degrees clockwise by which frames were turned to stand upright."""
    mirrored: bool
    """True where frames were flipped as the file demands."""
    stream: int
    """Number of the chosen stream in its container."""
    streams: tuple[str, ...]
    """All streams of the container, such as `0 video h264 320x180`."""
    declared_frames: int | None
    """What the header claims, for comparison."""
    truncated: bool = False
    """True where the file ends before what its header declares."""
