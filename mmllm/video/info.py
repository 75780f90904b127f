"""Facts about a video apart from its pictures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """A video's length, rate, size and coding, measured when the file is opened, not copied from its header."""

    source: str
    """The path, or a description of another source."""
    backend: str
    container: str
    codec: str
    pixel_format: str
    width: int
    """Pixels of a frame as it is shown: with square pixels, after rotation."""
    height: int
    """Pixels of a frame as it is shown: with square pixels, after rotation."""
    coded_width: int
    """Pixels of a frame as it is stored, before rotation."""
    coded_height: int
    """Pixels of a frame as it is stored, before rotation."""
    pixel_aspect: tuple[int, int] = (1, 1)
    """Width and height of a stored pixel, the container's first, else the coded stream's. From 1:10 to 10:1."""
    duration_s: float
    """A player's length: seconds from the start of its clock to the end of the last frame or sound."""
    start_s: float
    """The first shown frame's time as it stands in the file; `start_s - first_frame_s` is where the clock starts."""
    num_frames: int | None
    """Frames that can be shown, counted from the packets, not from the header; None if only decoding can tell."""
    average_fps: float
    variable_rate: bool
    """True if index / average_fps is wrong by more than one frame somewhere. Then use the frames' times."""
    time_estimated: bool
    """True if times are computed from the order and the rate, because the file has none or its clock is broken."""
    hdr: bool
    """True for PQ and HLG pictures, which look washed out as plain RGB."""
    rotation: int
    """Degrees clockwise by which frames were turned to be upright."""
    mirrored: bool
    """True if frames were mirrored, as the file demands."""
    interlaced: bool = False
    """True if the first frame is marked as two fields, which were recorded one after the other."""
    field_order: str = "progressive"
    """`progressive`, `top field first` or `bottom field first`, as the stream declares it. `unknown` if it does not,
    and with PyAV before 18."""
    deinterlaced: bool = False
    """True if frames that are marked as interlaced are de-interlaced."""
    matrix: str = "RGB"
    """The matrix from which RGB is computed: `BT.601`, `BT.709`, `BT.2020`, `SMPTE 240M`, `FCC`; else `RGB`, `grey`."""
    matrix_assumed: bool = False
    """True if the file names no matrix, so that it follows from the number of rows."""
    full_range: bool = True
    """True if black is 0 and white is the highest number; False for video's limited range."""
    transparent: bool = False
    """True if pixels can be transparent. They are laid on black."""
    stream: int
    """Number of the chosen stream in its container."""
    streams: tuple[str, ...]
    """All streams of the container, such as `0 video h264 320x180`."""
    audio: tuple[str, ...] = ()
    """Its tracks of sound, such as `1 aac 48000 Hz stereo (default)`."""
    declared_frames: int | None
    """Number of frames by the header, for comparison; None if it has none."""
    truncated: bool = False
    """True if the file ends earlier than its header declares."""
    first_frame_s: float = 0.0
    """When the first frame is shown. It is above 0 if sound starts before the picture."""
    last_frame_s: float = 0.0
    """When the last frame is shown."""
