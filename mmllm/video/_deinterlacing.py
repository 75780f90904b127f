"""De-interlacing: of a frame that holds two fields, one picture at the time of the first field.

The picture of frame i is made from frames i-1, i and i+1 alone (FFmpeg's bwdif), whichever frames are requested. So
single frames equal those of a full decode. Frames that are not marked as interlaced stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

_SMALLEST_EDGE = 16
"""Smaller frames are left as they are: the filter needs four columns and rows of each plane."""
FIELD_ORDERS = {
    1: "progressive",
    2: "top field first",
    3: "bottom field first",
    4: "bottom field first",
    5: "top field first",
}
"""FFmpeg's number of a stream's field order -> the field that is shown first. 4 and 5 store the other one first."""


class Deinterlacer:
    """De-interlaces the frames of one stream.

    Args:
        expected: whether frames are likely to be interlaced, so that their neighbours are decoded at once.
    """

    def __init__(self, *, expected: bool) -> None:
        self._expected = expected
        self._filter: _Filter | None = None
        self.postponed: list[int] = []
        """Numbers of requested frames that turned out to be interlaced while their neighbours were not decoded."""

    def needed(self, numbers: np.ndarray, count: int) -> np.ndarray:
        """int64, ascending: the frames that must be decoded for these ones.

        Args:
            numbers: int64, ascending.
            count: frames in the video.
        """
        if not self._expected:
            return numbers
        neighbours = numbers[:, None] + np.array([-1, 0, 1])
        return np.unique(neighbours[(neighbours >= 0) & (neighbours < count)])

    def frames(
        self, decoded: Iterable[tuple[int, VideoFrame]], requested: set[int] | None, *, complete: bool
    ) -> Iterator[tuple[int, VideoFrame]]:
        """Number and frame, de-interlaced, of each requested frame.

        Args:
            decoded: number and frame, ascending but for a few places.
            requested: numbers of the wanted frames; None for all.
            complete: whether the neighbours of all requested frames are decoded. If not, and if they are not expected,
                interlaced frames without neighbours are added to `postponed`. Else a neighbour that is missing does
                not exist, and the other one takes its place, too.
        """
        held: dict[int, VideoFrame] = {}
        waiting: list[int] = []
        complete = complete or self._expected
        for number, frame in decoded:
            if requested is None or number in requested:
                if _interlaced(frame):
                    waiting.append(number)
                else:
                    yield number, frame
            if not (waiting or self._expected):
                held = {number: frame}  # the next frame may need it
                continue
            held[number] = frame
            for ready in [n for n in waiting if n <= number + 1 and _has_neighbours(n, held)]:
                waiting.remove(ready)
                yield ready, self._deinterlaced(ready, held)
            for old in [n for n in held if n < number - 1 and not any(abs(n - w) <= 1 for w in waiting)]:
                del held[old]
        if complete:
            yield from ((number, self._deinterlaced(number, held)) for number in waiting)
        else:
            self.postponed += waiting

    def take_postponed(self) -> np.ndarray:
        """int64, ascending: the postponed frames, to be decoded again with their neighbours."""
        numbers, self.postponed = np.array(sorted(self.postponed), dtype=np.int64), []
        self._expected = self._expected or len(numbers) > 0
        return numbers

    def _deinterlaced(self, number: int, held: dict[int, VideoFrame]) -> VideoFrame:
        frame = held[number]
        neighbours = (held.get(number - 1), held.get(number + 1))
        before, after = (near if near is not None and _shape(near) == _shape(frame) else None for near in neighbours)
        if before is None and after is None:
            return _Filter(frame).alone
        if self._filter is None or not self._filter.takes(frame):
            self._filter = _Filter(frame)
        return self._filter.result(before or after, frame, after or before)


class _Filter:
    """FFmpeg's bwdif for frames of one size and pixel format, made with an interlaced frame."""

    def __init__(self, frame: VideoFrame) -> None:
        from av.filter import Graph

        self._shape = _shape(frame)
        self._pushed: list[VideoFrame] = []
        self._graph = Graph()
        if hasattr(self._graph, "threads"):  # older versions of PyAV do not have it
            self._graph.threads = 1
        source = self._graph.add(
            "buffer",
            video_size=f"{frame.width}x{frame.height}",
            pix_fmt=frame.format.name,
            time_base="1/1000",
            pixel_aspect="1/1",
            colorspace=str(int(frame.colorspace)),
            range=str(int(frame.color_range)),
        )
        filters = self._graph.add("bwdif", "mode=send_frame:parity=auto:deint=interlaced")
        self._graph.link_nodes(source, filters, self._graph.add("buffersink"))
        self._graph.configure()
        # A new filter makes its first picture from the rows of one frame, and all later ones from three frames.
        self._push(frame)
        self.alone = self._push(frame)
        """The frame de-interlaced from its own rows."""
        self.alone.pts = frame.pts

    def takes(self, frame: VideoFrame) -> bool:
        """True if the filter was made for frames like this."""
        return _shape(frame) == self._shape

    def result(self, before: Any, frame: VideoFrame, after: Any) -> VideoFrame:
        """The frame de-interlaced, with its own `pts`."""
        # The filter looks at the last three frames that it got, so what came before them does not matter.
        if len(self._pushed) != 2 or self._pushed[0] is not before or self._pushed[1] is not frame:
            self._push(before)
            self._push(frame)
        result: VideoFrame = self._push(after)
        self._pushed = [frame, after]
        result.pts = frame.pts
        return result

    def _push(self, frame: VideoFrame) -> Any:
        """The last frame that comes out of the filter after this one went in; None if none does."""
        import av

        self._graph.vpush(frame)
        result = None
        try:
            while True:
                result = self._graph.vpull()
        except av.error.BlockingIOError:
            return result


def _interlaced(frame: VideoFrame) -> bool:
    return frame.interlaced_frame and min(frame.height, frame.width) >= _SMALLEST_EDGE


def _has_neighbours(number: int, held: dict[int, VideoFrame]) -> bool:
    return (number == 0 or number - 1 in held) and number + 1 in held


def _shape(frame: VideoFrame) -> tuple[int, int, str, int, int]:
    return frame.height, frame.width, frame.format.name, int(frame.colorspace), int(frame.color_range)
