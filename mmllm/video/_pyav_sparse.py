"""Decoding few frames of many: from a key frame to the last wanted frame that leans on it, run after run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from mmllm.video._frame_index import FrameIndex
from mmllm.video._pyav_decoder import Decoder
from mmllm.video._pyav_packets import PacketSource
from mmllm.video.limits import Deadline

if TYPE_CHECKING:
    from av.video.frame import VideoFrame


class NotAsPromised(Exception):
    """The packets' promise does not hold: a wanted frame is missing or damaged, or the container cannot seek."""


class SparseDecoder:
    """Decodes frames by their number, in one pass over the packets for each call.

    Args:
        decoder: the decoder.
        source: the packets.
        index: which packet holds each frame, and where decoding must start for it.
        shown: the frames that came out so far, if the decoder was given all packets before `source.position`; None
            if it was given nothing.
    """

    def __init__(
        self, decoder: Decoder, source: PacketSource, index: FrameIndex, shown: list[VideoFrame] | None
    ) -> None:
        assert index.pts is not None
        assert index.packet is not None
        assert index.start is not None
        self._decoder, self._source, self._shown = decoder, source, shown or []
        self._pts, self._packet, self._start = index.pts, index.packet, index.start
        self._empty = shown is None
        """True while the decoder has been given nothing since it was last emptied."""

    def frames(self, numbers: Sequence[int], deadline: Deadline) -> Iterator[tuple[int, VideoFrame]]:
        """Number and frame of each frame wanted.

        Raises:
            NotAsPromised: if one of them does not come out intact.
        """
        import av

        runs: dict[int, list[int]] = {}
        for number in numbers:
            runs.setdefault(int(self._start[number]), []).append(number)
        pending: dict[int, int] = {}
        try:
            for start in sorted(runs):
                shown, self._shown = self._shown, []
                if not (shown and start == 0) and (self._empty or self._source.position != start):
                    yield from _kept(self._drained(), pending)
                    if pending:
                        raise NotAsPromised
                    self._source.go_to(start)
                pending.update({int(self._pts[number]): number for number in runs[start]})
                yield from _kept(shown, pending)
                yield from self._run({int(self._packet[number]) for number in runs[start]}, pending, deadline)
            yield from _kept(self._drained(), pending)
        except (av.error.FFmpegError, EOFError):
            raise NotAsPromised from None
        if pending:
            raise NotAsPromised

    def _run(self, packets: set[int], pending: dict[int, int], deadline: Deadline) -> Iterator[tuple[int, VideoFrame]]:
        """Gives the decoder packets up to the last of `packets`; of those not among them, what others lean on."""
        self._empty = False
        decoder, source = self._decoder, self._source
        for position in range(source.position, max(packets) + 1):
            deadline.check("decoding")
            decoder.drop_unreferenced(position not in packets)
            for frame in decoder.codec.decode(source.next()):
                if frame.pts in pending:
                    yield _taken(frame, pending)

    def _drained(self) -> list[VideoFrame]:
        """The frames that the decoder still holds; it is empty afterwards."""
        import av

        if self._empty:
            return []
        try:
            frames = self._decoder.codec.decode(None)
        except av.error.EOFError:  # drained before
            frames = []
        self._decoder.codec.flush_buffers()
        self._empty = True
        return frames


def _kept(frames: list[VideoFrame], pending: dict[int, int]) -> Iterator[tuple[int, VideoFrame]]:
    """Those frames that are waited for, known by their presentation time."""
    for frame in frames:
        if frame.pts in pending:
            yield _taken(frame, pending)


def _taken(frame: VideoFrame, pending: dict[int, int]) -> tuple[int, VideoFrame]:
    """Number and frame of one that was waited for."""
    if frame.is_corrupt:
        raise NotAsPromised
    return pending.pop(frame.pts), frame
