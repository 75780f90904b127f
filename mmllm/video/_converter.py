"""PyAV's converter of pixels, called so that each version gives the same pixels."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

_MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9}
"""H.274's number of a matrix -> FFmpeg's. Without a tag, FFmpeg takes BT.601 (5)."""
_LIMITED, _FULL = 1, 2


def keywords(frame: VideoFrame) -> dict[str, Any]:
    """What `VideoReformatter.reformat` has to be told to convert a frame by its own matrix and range, in one thread.

    Before version 17, PyAV always works in one thread. It reads matrix and range only if they differ from those of the
    result, so here they do: the result is RGB, which has no matrix, and its range is full.
    """
    if _major_version() >= 17:
        return {"threads": 1}
    if frame.format.is_rgb or frame.format.has_palette:
        return {}
    full = int(frame.color_range) == _FULL or frame.format.name.startswith("yuvj")
    return {
        "src_colorspace": _MATRICES.get(int(frame.colorspace), 5),
        "dst_colorspace": 0,
        "src_color_range": _FULL if full else _LIMITED,
        "dst_color_range": _FULL,
    }


@cache
def _major_version() -> int:
    import av

    return int(av.__version__.split(".")[0])
