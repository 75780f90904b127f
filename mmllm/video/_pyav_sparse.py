"""Decoding a few of many frames, in runs: each run is from a key frame to the last requested frame that needs it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from mmllm.video._frame_index import FrameIndex
from mmllm.video._pyav_decoder import Decoder
from mmllm.video._pyav_packets import PacketSource
from mmllm.video.limits import Deadline

if TYPE_CHECKING:
    from av.video.frame import VideoFrame


class NotAsDeclared(Exception):
    """The packets declared a frame that is missing or damaged, or the container cannot seek to it."""


class SparseDecoder:
    """Decodes frames by their number, in one pass over the packets for each call.

    Args:
        decoder: the decoder.
        source: the packets.
        index: which packet holds each frame, and where decoding must start for it.
        decoded: the frames that came out of the decoder so far, if it got all packets before `source.position`; None
            if it got no packet.
    """

    def __init__(
        self, decoder: Decoder, source: PacketSource, index: FrameIndex, decoded: list[VideoFrame] | None
    ) -> None:
        assert index.pts is not None
        assert index.packet is not None
        assert index.start is not None
        self._decoder, self._source, self._decoded = decoder, source, decoded or []
        self._pts, self._packet, self._start = index.pts, index.packet, index.start
        self._empty = decoded is None
        """True while the decoder holds nothing: it got no packet since it was last emptied."""

    def frames(self, numbers: Sequence[int], deadline: Deadline) -> Iterator[tuple[int, VideoFrame]]:
        """Number and frame of each requested frame.

        Raises:
            NotAsDeclared: if a frame does not come out, or comes out damaged.
        """
        import av

        runs: dict[int, list[int]] = {}  # the packet at which decoding must start -> numbers of frames
        for number in numbers:
            runs.setdefault(int(self._start[number]), []).append(number)
        pending: dict[int, int] = {}  # presentation time of a frame that must still come out -> its number
        try:
            for start in sorted(runs):
                decoded, self._decoded = self._decoded, []
                if not (decoded and start == 0) and (self._empty or self._source.position != start):
                    yield from _take_pending(self._drained(), pending)
                    if pending:
                        raise NotAsDeclared
                    self._source.go_to(start)
                pending.update({int(self._pts[number]): number for number in runs[start]})
                yield from _take_pending(decoded, pending)
                yield from self._run({int(self._packet[number]) for number in runs[start]}, pending, deadline)
            yield from _take_pending(self._drained(), pending)
        except (av.error.FFmpegError, EOFError):
            raise NotAsDeclared from None
        if pending:
            raise NotAsDeclared

    def _run(self, packets: set[int], pending: dict[int, int], deadline: Deadline) -> Iterator[tuple[int, VideoFrame]]:
        """Decodes up to the last of `packets`. The decoder may skip other packets on which no frame depends."""
        self._empty = False
        decoder, source = self._decoder, self._source
        for position in range(source.position, max(packets) + 1):
            deadline.check("decoding")
            decoder.drop_unreferenced(position not in packets)
            yield from _take_pending(decoder.decode_exactly(source.next()), pending)

    def _drained(self) -> list[VideoFrame]:
        """The frames that the decoder still holds; it is empty afterwards."""
        import av

        if self._empty:
            return []
        try:
            frames = self._decoder.codec.decode(None)
        except av.error.EOFError:  # it was drained before
            frames = []
        self._decoder.codec.flush_buffers()
        self._empty = True
        return frames


def _take_pending(frames: list[VideoFrame], pending: dict[int, int]) -> Iterator[tuple[int, VideoFrame]]:
    """Number and frame of those frames that are pending, which they no longer are."""
    for frame in frames:
        if frame.pts in pending:
            if frame.is_corrupt:
                raise NotAsDeclared
            yield pending.pop(frame.pts), frame
