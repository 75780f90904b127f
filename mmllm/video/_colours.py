"""From which matrix a frame's YUV becomes RGB: by its tag, else by the number of its rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmllm.video import _tone_map
from mmllm.video.errors import VideoDecodeError

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

_HD_ROWS = 720
_BT709, _BT601, _BT2020 = 1, 5, 9
"""Numbers of matrices in ITU-T H.273, which FFmpeg's converter takes, too."""
_NAMES = {_BT709: "BT.709", 4: "FCC", _BT601: "BT.601", 6: "BT.601", 7: "SMPTE 240M", _BT2020: "BT.2020"}
_UNTAGGED = (0, 2, 3)  # 0 is RGB, which no YUV frame can be
_NOT_CONVERTED = {
    8: "YCgCo",
    10: "BT.2020 with constant luminance",
    11: "SMPTE 2085",
    12: "derived from the primaries",
    13: "derived from the primaries, with constant luminance",
    14: "ICtCp",
}
_ONLY_BT601 = ("vp8", "libvpx")
_FULL_RANGE = 2
_BT2020_PRIMARIES = 9


@dataclass(frozen=True, kw_only=True)
class Colours:
    """How the numbers of a frame are read as colours."""

    matrix: str
    """`BT.601`, `BT.709`, `BT.2020`, `SMPTE 240M` or `FCC`; `RGB` or `grey` if the frame needs no matrix."""
    assumed: int | None
    """Number of the matrix if the file names none; else None."""
    full_range: bool
    """True if black is 0 and white is the highest number."""
    transparent: bool
    """True if pixels can be transparent. A palette's colours can be, too."""


@dataclass(frozen=True, kw_only=True)
class Declared:
    """What a stream's decoder says of its colours as a whole."""

    codec: str
    """The decoder's name."""
    primaries: int
    transfer: int


def declared(codec: Any) -> Declared:
    """What an open decoder says."""
    return Declared(codec=codec.name, primaries=int(codec.color_primaries), transfer=int(codec.color_trc))


def colours_of(frame: VideoFrame, stream: Declared, name: str) -> Colours:
    """How a frame's numbers are read.

    Without a tag, frames of 720 rows or more are BT.709 and smaller ones BT.601, as players do it; frames with the
    primaries or the transfer function of HDR are BT.2020. VP8 knows BT.601 only.

    Args:
        frame: as decoded, before it is turned.
        stream: what holds for all frames.
        name: of the video, for the error.

    Raises:
        VideoDecodeError: if the frame names a matrix that FFmpeg does not convert.
    """
    pixel_format, number = frame.format, int(frame.colorspace)
    full_range = int(frame.color_range) == _FULL_RANGE or pixel_format.name.startswith("yuvj")
    transparent = pixel_format.has_palette or any(component.is_alpha for component in pixel_format.components)
    if pixel_format.is_rgb or pixel_format.has_palette:
        return Colours(matrix="RGB", assumed=None, full_range=True, transparent=transparent)
    if len(pixel_format.components) < 3:  # brightness, and maybe transparency
        return Colours(matrix="grey", assumed=None, full_range=full_range, transparent=transparent)
    if number in _NAMES:
        return Colours(matrix=_NAMES[number], assumed=None, full_range=full_range, transparent=transparent)
    if number not in _UNTAGGED:
        matrix = _NOT_CONVERTED.get(number, f"of number {number}")
        raise VideoDecodeError(
            f"{name}: its colour matrix ({matrix}) cannot be converted; convert the file first: "
            "ffmpeg -i IN -vf scale=out_color_matrix=bt709 OUT"
        )
    assumed = _BT709 if frame.height >= _HD_ROWS and stream.codec not in _ONLY_BT601 else _BT601
    if stream.primaries == _BT2020_PRIMARIES or stream.transfer in (_tone_map.PQ, _tone_map.HLG):
        assumed = _BT2020
    return Colours(matrix=_NAMES[assumed], assumed=assumed, full_range=full_range, transparent=transparent)
