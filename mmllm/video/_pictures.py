"""From decoded frames to upright RGB arrays of one size, with square pixels.

H W height width
"""

from __future__ import annotations

import warnings
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from mmllm.video import _display_shape, _orientation, _tone_map
from mmllm.video._colours import Colours, colours_of, declared
from mmllm.video._converter import keywords
from mmllm.video._display_shape import PixelAspects
from mmllm.video._open_options import OpenOptions
from mmllm.video.errors import VideoShapeChanged

if TYPE_CHECKING:
    from av.video.frame import VideoFrame


class PictureMaker:
    """Converts, resizes and turns the frames of one stream with one converter.

    Args:
        name: of the video, for messages.
        first: the first frame. Later frames of another shape are fitted into its shape.
        aspects: of the stream's pixels.
        codec: the decoder.
        options: limits, and whether HDR is converted.

    Raises:
        LimitExceeded: if a shown frame has too many pixels.
        VideoDecodeError: if the colours of the first frame cannot be converted.
    """

    def __init__(self, name: str, first: VideoFrame, aspects: PixelAspects, codec: Any, options: OpenOptions) -> None:
        from av.video.reformatter import VideoReformatter

        self._name, self._aspects = name, aspects
        self._converter = VideoReformatter()
        self._tone_map = options.tone_map
        self._declared = declared(codec)
        self._coding: tuple[str, int, int] | None = None
        self.colours = self._colours_of(first)
        self.orientation = _orientation.from_display_matrix(_display_matrix(first))
        self.coded_shape = self._shape(first)
        self._box = _display_shape.shown_size(*self.coded_shape)  # before it is turned
        self.height, self.width = self.orientation.coded_size(*self._box)
        options.limits.check_size(name, self.width, self.height)
        self._change_reported = False

    @property
    def hdr(self) -> bool:
        """True for the transfer functions PQ and HLG."""
        return self._declared.transfer in (_tone_map.PQ, _tone_map.HLG)

    def changed(self, frame: VideoFrame) -> bool:
        """True if the frame is stored in another shape than the first."""
        return self._shape(frame) != self.coded_shape

    def _shape(self, frame: VideoFrame) -> tuple[int, int, Fraction]:
        return frame.height, frame.width, self._aspects.of(frame)

    def picture(self, frame: VideoFrame, size: tuple[int, int] | None) -> np.ndarray:
        """The frame as uint8 (H W 3), turned upright. Transparent pixels are laid on black.

        A frame of another shape than the first is fitted into the middle, on black.

        Args:
            frame: as decoded.
            size: height and width of the result; by default those of the stream's first frame.
        """
        height, width = self.orientation.coded_size(*size) if size else self._box
        if not self.changed(frame):
            return self.orientation.upright(self._rgb(frame, height, width))
        shape = self._shape(frame)
        self._report_change(shape)
        place = _display_shape.fitted(_display_shape.shown_size(*shape), self._box, (height, width))
        pixels = np.zeros((height, width, 3), dtype=np.uint8)
        rows, columns = slice(place.top, place.top + place.height), slice(place.left, place.left + place.width)
        pixels[rows, columns] = self._rgb(frame, place.height, place.width)
        return self.orientation.upright(pixels)

    def _rgb(self, frame: VideoFrame, height: int, width: int) -> np.ndarray:
        """uint8 (H W 3), not turned."""
        colours = self._colours_of(frame)
        if self._tone_map and self.hdr:
            codes = self._converted(frame, height, width, "rgb48le", colours.assumed)
            return _tone_map.tone_mapped(codes, self._declared.transfer)
        if colours.transparent:
            rgba = self._converted(frame, height, width, "rgba", colours.assumed).astype(np.uint16)
            return ((rgba[..., :3] * rgba[..., 3:] + 127) // 255).astype(np.uint8)
        return self._converted(frame, height, width, "rgb24", colours.assumed)

    def _converted(
        self, frame: VideoFrame, height: int, width: int, pixel_format: str, matrix: int | None
    ) -> np.ndarray:
        stated = frame.colorspace
        if matrix is not None:
            frame.colorspace = matrix
        converted = self._converter.reformat(frame, width=width, height=height, format=pixel_format, **keywords(frame))
        frame.colorspace = stated
        plane, channels = converted.planes[0], 4 if pixel_format == "rgba" else 3
        dtype = np.dtype("<u2" if pixel_format == "rgb48le" else np.uint8)
        # FFmpeg pads each row of pixels, so the padding is cut off.
        rows = np.frombuffer(plane, dtype=dtype).reshape(height, plane.line_size // dtype.itemsize)
        return rows[:, : width * channels].reshape(height, width, channels)

    def _colours_of(self, frame: VideoFrame) -> Colours:
        """How the frame's numbers are read, found again only if its coding differs from that of the frame before."""
        coding = frame.format.name, int(frame.colorspace), frame.height
        if coding != self._coding:
            self._coding, self._frame_colours = coding, colours_of(frame, self._declared, self._name)
        return self._frame_colours

    def _report_change(self, shape: tuple[int, int, Fraction]) -> None:
        """Warns, the first time."""
        if not self._change_reported:
            self._change_reported = True
            warnings.warn(
                f"{self._name}: frames change from {_words(self.coded_shape)} to {_words(shape)}; those of another "
                f"shape are fitted into {self.width} x {self.height}, with black bars",
                VideoShapeChanged,
                stacklevel=2,
            )


def _words(shape: tuple[int, int, Fraction]) -> str:
    height, width, aspect = shape
    pixels = "" if aspect == 1 else f" with pixels of {aspect.numerator}:{aspect.denominator}"
    return f"{width} x {height}{pixels}"


def _display_matrix(frame: VideoFrame) -> bytes:
    """The frame's display matrix, empty if it has none."""
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            return bytes(data)
    return b""
