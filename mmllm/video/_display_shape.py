"""The shape in which frames are shown. Stored pixels need not be square, and a stream may change its shape.

H W height and width in pixels; an aspect is the width of a stored pixel divided by its height
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.frame import VideoFrame

SQUARE = Fraction(1)
_WIDEST = 10
_CONTAINERS_WITH_ASPECT = ("mov", "matroska", "avi", "asf", "mxf", "nut", "ogg", "yuv4mpegpipe")
"""Containers whose header states the aspect. In the others only the coded stream does, and it may change."""


class PixelAspects:
    """The aspect of the pixels of each frame: the container's first, else that of the coded stream."""

    def __init__(self, container: Any, stream: Any) -> None:
        """Reads what is known before any packet is read; afterwards some containers only know their last aspect."""
        self._header = usable(stream.sample_aspect_ratio) or usable(stream.codec_context.sample_aspect_ratio)
        self.fixed = container.format.name.split(",")[0] in _CONTAINERS_WITH_ASPECT
        """True if all frames have the aspect that was found at first."""
        self._differs = False
        """True if the last key frame that was decoded has another aspect than the header."""

    def decode(self, codec: Any, packet: Packet) -> list[VideoFrame]:
        """The frames that the decoder gives after a packet. Frames whose aspect may differ are marked with it."""
        if not (packet.is_keyframe or self._differs):  # it changes at key frames only
            unmarked: list[VideoFrame] = codec.decode(packet)
            return unmarked
        # A frame comes out some packets later than it went in. The decoder hands the mark of its packet on to it.
        packet.opaque = mark = _Mark()
        frames: list[VideoFrame] = codec.decode(packet)
        mark.aspect = usable(codec.sample_aspect_ratio)
        self._differs = mark.aspect not in (None, self._header)
        return frames

    def of(self, frame: VideoFrame) -> Fraction:
        """The aspect of a decoded frame's pixels; 1 if none is stated, or an impossible one."""
        mark = None if self.fixed else frame.opaque
        return (mark.aspect if isinstance(mark, _Mark) else None) or self._header or SQUARE


class _Mark:
    """What is known about the frame of a packet after the packet went into the decoder."""

    aspect: Fraction | None = None


def usable(aspect: Fraction | None) -> Fraction | None:
    """The aspect if it can be meant: from 1:10 to 10:1. Else None, as for 0:1 and 1000:1."""
    return aspect if aspect and Fraction(1, _WIDEST) <= aspect <= _WIDEST else None


def shown_size(height: int, width: int, aspect: Fraction) -> tuple[int, int]:
    """Height and width with square pixels: the width times the aspect, as the nearest even number.

    A width that would change by less than one pixel stays.
    """
    exact = width * aspect
    return (height, width) if abs(exact - width) < 1 else (height, max(2, 2 * round(exact / 2)))


@dataclass(frozen=True, kw_only=True)
class Place:
    """A rectangle in a picture."""

    top: int
    left: int
    height: int
    width: int


def fitted(size: tuple[int, int], box: tuple[int, int], target: tuple[int, int]) -> Place:
    """Where a picture lies that is fitted into the middle of a box, after the box is resized.

    Args:
        size: height and width of the picture; their ratio is kept within the box.
        box: height and width of the box.
        target: height and width to which the box is resized.
    """
    scale = min(Fraction(box[0], size[0]), Fraction(box[1], size[1]))
    height, width = (max(1, min(target[axis], round(size[axis] * scale * target[axis] / box[axis]))) for axis in (0, 1))
    return Place(top=(target[0] - height) // 2, left=(target[1] - width) // 2, height=height, width=width)
