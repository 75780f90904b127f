"""From decoded frames to upright RGB arrays of one size.

H W height width
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmllm.video import _orientation, _tone_map
from mmllm.video._converter import keywords

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

_ALPHA_FORMATS = ("rgba", "bgra", "argb", "abgr", "yuva", "gbrap", "ya8", "ya16", "pal8")


class PictureMaker:
    """Converts, resizes and turns the frames of one stream with one converter."""

    def __init__(self, first: VideoFrame, *, transfer: int, tone_map: bool) -> None:
        from av.video.reformatter import VideoReformatter

        self._converter = VideoReformatter()
        self._tone_map = tone_map
        self._transfer = transfer
        self.orientation = _orientation.from_display_matrix(_display_matrix(first))
        self.height, self.width = self.orientation.coded_size(first.height, first.width)

    @property
    def hdr(self) -> bool:
        """True for the transfer functions PQ and HLG."""
        return self._transfer in (_tone_map.PQ, _tone_map.HLG)

    def picture(self, frame: VideoFrame, size: tuple[int, int] | None) -> np.ndarray:
        """The frame as uint8 (H W 3), turned upright. Transparent pixels are laid on black.

        Args:
            frame: as decoded.
            size: height and width of the result; by default those of the stream's first frame.
        """
        height, width = self.orientation.coded_size(*(size or (self.height, self.width)))
        if self._tone_map and self.hdr:
            pixels = _tone_map.tone_mapped(self._converted(frame, height, width, "rgb48le"), self._transfer)
        elif frame.format.name.startswith(_ALPHA_FORMATS):
            rgba = self._converted(frame, height, width, "rgba").astype(np.uint16)
            pixels = ((rgba[..., :3] * rgba[..., 3:] + 127) // 255).astype(np.uint8)
        else:
            pixels = self._converted(frame, height, width, "rgb24")
        return self.orientation.upright(pixels)

    def _converted(self, frame: VideoFrame, height: int, width: int, pixel_format: str) -> np.ndarray:
        converted = self._converter.reformat(frame, width=width, height=height, format=pixel_format, **keywords(frame))
        plane, channels = converted.planes[0], 4 if pixel_format == "rgba" else 3
        dtype = np.dtype("<u2" if pixel_format == "rgb48le" else np.uint8)
        # FFmpeg pads each row of pixels, so the padding is cut off.
        rows = np.frombuffer(plane, dtype=dtype).reshape(height, plane.line_size // dtype.itemsize)
        return rows[:, : width * channels].reshape(height, width, channels)


def _display_matrix(frame: VideoFrame) -> bytes:
    """The frame's display matrix, empty if it has none."""
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            return bytes(data)
    return b""
