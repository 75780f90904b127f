"""The reference reader: PyAV, exact times, only the wanted frames decoded as far as the file allows.

A frame is found by its presentation time: the packets, read once, say which frames there are and from which key
frame each must be decoded. Where that promise does not hold (damage, guessed or missing timestamps), the file is
decoded from its start, and frames are known by their order alone; so an index always means the same frame as in
a decode of the whole file.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mmllm.datasets import _frame_index, _orientation, _pyav_open
from mmllm.datasets._frame_index import NONE, FrameIndex
from mmllm.datasets._reader import IndexChanged, VideoReader
from mmllm.datasets._sources import MediaFile
from mmllm.datasets.video_errors import NoFrames, VideoDecodeError
from mmllm.datasets.video_info import VideoInfo
from mmllm.datasets.video_limits import Deadline, VideoLimits

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.frame import VideoFrame

_SKIP_PACKETS = 256
"""Up to so many packets are stepped over rather than sought."""
_HDR_TRANSFERS = (16, 18)  # PQ and HLG, as H.273 numbers them
_logger = logging.getLogger(__name__)


class PyAVReader(VideoReader):
    """Reads a file, bytes or a file object with PyAV."""

    def __init__(self, media: MediaFile, limits: VideoLimits, *, stream: int | None = None) -> None:
        self._media, self.limits, self._stream_number = media, limits, stream
        self._container: Any = None
        self._errors = self._corrupt = 0
        self._open()
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    # Opening

    def _open(self) -> None:
        """Opens the container at its start, with a decoder that has seen nothing."""
        from av.video.reformatter import VideoReformatter

        self.close()
        self._container = _pyav_open.open_container(self._media, self.limits)
        self._stream = _pyav_open.choose_stream(self._container, self._media.name, self._stream_number)
        self._codec = self._stream.codec_context
        self.limits.check_size(self._media.name, self._codec.width, self._codec.height)
        self._codec.options = {"max_pixels": str(self.limits.pixels)}
        self._codec.thread_type, self._codec.thread_count = "NONE", 1
        self._reformatter = VideoReformatter()
        self._restart(0)

    def _restart(self, position: int) -> None:
        """Takes note that the next packet is number `position` and that the decoder is empty."""
        self._packets_left = _pyav_open.packets_of(self._container, self._stream)
        self._position, self._fresh = position, True

    def _prepare(self) -> None:
        name, limits = self._media.name, self.limits
        self._packets = _pyav_open.scan(self._container, self._stream, name, limits)
        self._rate = _pyav_open.rate_of(self._stream)
        self._trusted = _pyav_open.trusted_times(self._container, self._stream)
        streams, container = _pyav_open.describe_streams(self._container), self._container.format.name
        first = self._first_frame()
        if first.pts is not None:
            unseen = (self._packets.pts != NONE) & (self._packets.pts < first.pts)
            self._packets.hidden[unseen] = True
        self._index: FrameIndex = _frame_index.from_packets(self._packets, self._rate, trusted=self._trusted)
        self._complete = False
        if len(self._index) == 0 or (first.pts is not None and first.pts != self._index.first_pts):
            self._learn()
        self._orientation = _orientation.from_display_matrix(_display_matrix(first))
        height, width = self._orientation.coded_size(first.height, first.width)
        limits.check_duration(name, self._index.duration_s)
        self._header = {
            "source": name,
            "backend": "pyav",
            "container": container.split(",")[0],
            "codec": self._codec.codec.name,
            "pixel_format": first.format.name,
            "width": width,
            "height": height,
            "hdr": int(first.color_trc) in _HDR_TRANSFERS,
            "rotation": self._orientation.rotation,
            "mirrored": self._orientation.mirrored,
            "stream": self._stream.index,
            "streams": streams,
            "declared_frames": self._stream.frames or None,
        }

    @property
    def info(self) -> VideoInfo:
        index = self._index
        return VideoInfo(
            duration_s=index.duration_s,
            start_s=float(index.first_pts * self._packets.time_base),
            num_frames=len(index),
            average_fps=len(index) / index.duration_s,
            variable_rate=index.variable_rate,
            time_estimated=index.estimated,
            **self._header,
        )

    def _first_frame(self) -> VideoFrame:
        """The first frame that a decode from the start shows.

        Raises:
            NoFrames: if there is none in the whole file.
        """
        deadline = Deadline(self._media.name, self.limits.cpu_s)
        self._open()
        for frame in self._decode_on(deadline):
            self._errors = self._corrupt = 0
            return frame
        raise NoFrames(
            f"{self._media.name}: not one of its {len(self._packets)} video packets ({self._codec.name}) can be decoded"
        )

    # Reading

    @property
    def times_s(self) -> np.ndarray:
        return self._index.times_s

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
        self._container = None

    def damage(self) -> Mapping[str, Any]:
        counts = {"decode_errors": self._errors, "corrupt_frames": self._corrupt}
        return {name: count for name, count in counts.items() if count}

    def decode(self, indices: np.ndarray, size: tuple[int, int] | None) -> Iterator[tuple[int, np.ndarray]]:
        self._require_open()
        if len(indices) == 0:
            return iter(())
        if self._index.pts is None:
            return self._decode_by_order(indices, size)
        return self._decode_sparsely(indices, size)

    def decode_all(self, size: tuple[int, int] | None) -> Iterator[tuple[float, np.ndarray]]:
        self._require_open()
        times_s, latest_s = self._index.times_s, 0.0
        by_order = self._index.pts is None
        self._errors = self._corrupt = 0
        self._open()
        deadline = Deadline(self._media.name, None)
        for ordinal, frame in enumerate(self._decode_on(deadline)):
            if by_order and ordinal < len(times_s):
                time_s = float(times_s[ordinal])
            elif frame.pts is not None:
                time_s = float((frame.pts - self._index.first_pts) * self._packets.time_base)
            else:
                time_s = latest_s
            latest_s = max(latest_s, time_s)
            yield latest_s, self._picture(frame, size)

    def _require_open(self) -> None:
        if self._container is None:
            raise VideoDecodeError(f"{self._media.name}: the reader is closed")

    def _decode_on(self, deadline: Deadline) -> Iterator[VideoFrame]:
        """All frames from here to the end, stepping over packets that cannot be decoded."""
        import av

        for packet in self._remaining():
            deadline.check("decoding")
            try:
                frames = self._codec.decode(packet)
            except av.error.EOFError:
                return
            except av.error.FFmpegError:
                self._errors += 1
                continue
            for frame in frames:
                self._corrupt += frame.is_corrupt
                yield frame

    def _remaining(self) -> Iterator[Packet | None]:
        self._fresh = False
        for packet in self._packets_left:
            self._position += 1
            yield packet
        yield None  # tells the decoder to give what it still holds

    def _decode_by_order(self, indices: np.ndarray, size: tuple[int, int] | None) -> Iterator[tuple[int, np.ndarray]]:
        """Counts frames from the start. At the end of the file, what was counted becomes the index."""
        wanted = set(indices.tolist())
        last = int(indices[-1])
        pts: list[int | None] = []
        self._errors = self._corrupt = 0
        self._open()
        confirm = not self._complete and last == len(self._index) - 1
        for number, frame in enumerate(self._decode_on(Deadline(self._media.name, self.limits.cpu_s))):
            pts.append(frame.pts)
            if number in wanted:
                yield number, self._picture(frame, size)
            if number >= last and not confirm:
                return
        if not self._complete and self._replace_index(pts):
            raise IndexChanged

    def _learn(self) -> None:
        """Decodes everything once to know which frames there really are."""
        self._errors = self._corrupt = 0
        self._open()
        self._replace_index([f.pts for f in self._decode_on(Deadline(self._media.name, self.limits.cpu_s))])

    def _replace_index(self, pts: list[int | None]) -> bool:
        """Takes what a decode from start to end has shown for the index; True if it differs from what was known."""
        if not pts:
            raise NoFrames(f"{self._media.name}: no frame can be decoded")
        last_duration = int(np.median(self._packets.duration)) if len(self._packets) else 0
        before = self._index
        self._index = _frame_index.from_decoding(pts, self._packets.time_base, self._rate, last_duration)
        self._complete = True
        return not np.array_equal(before.times_s, self._index.times_s)

    def _decode_sparsely(self, indices: np.ndarray, size: tuple[int, int] | None) -> Iterator[tuple[int, np.ndarray]]:
        """Decodes from key frame to the last wanted frame that leans on it, one such run after another."""
        import av

        index = self._index
        assert index.pts is not None
        assert index.packet is not None
        assert index.start is not None
        deadline = Deadline(self._media.name, self.limits.cpu_s)
        pending: dict[int, int] = {}
        runs: dict[int, list[int]] = {}
        for number in indices.tolist():
            runs.setdefault(int(index.start[number]), []).append(number)
        try:
            for start in sorted(runs):
                if self._fresh or self._position != start:
                    yield from self._emit(self._drain(), pending, size)
                    if pending:
                        break
                    self._go_to(start)
                packets_wanted = {int(index.packet[number]) for number in runs[start]}
                pending.update({int(index.pts[number]): number for number in runs[start]})
                last = max(packets_wanted)
                while self._position <= last:
                    deadline.check("decoding")
                    packet = next(self._packets_left)
                    self._position += 1
                    self._fresh = False
                    yield from self._emit(self._codec.decode(packet), pending, size)
            yield from self._emit(self._drain(), pending, size)
        except (av.error.FFmpegError, StopIteration, _Damaged):
            pass
        if pending:
            _logger.debug("%s: frames differ from the packets' promise; decoding from the start", self._media.name)
            self._learn()
            raise IndexChanged

    def _emit(
        self, frames: list[VideoFrame], pending: dict[int, int], size: tuple[int, int] | None
    ) -> Iterator[tuple[int, np.ndarray]]:
        for frame in frames:
            if frame.pts in pending:
                if frame.is_corrupt:
                    raise _Damaged
                yield pending.pop(frame.pts), self._picture(frame, size)

    def _drain(self) -> list[VideoFrame]:
        """The frames that the decoder still holds; it must be restarted afterwards."""
        import av

        if self._fresh:
            return []
        try:
            frames = self._codec.decode(None)
        except av.error.EOFError:  # drained before
            frames = []
        self._codec.flush_buffers()
        self._fresh = True
        return frames

    def _go_to(self, packet: int) -> None:
        """Makes `packet` the next one, with an empty decoder."""
        if not self._position <= packet <= self._position + _SKIP_PACKETS:
            self._seek(packet)
        while self._position < packet:
            next(self._packets_left)
            self._position += 1

    def _seek(self, packet: int) -> None:
        """Jumps to `packet` or somewhat before it; to the start of the file where the container cannot do better."""
        import itertools

        import av

        for ticks in (int(self._packets.pts[packet]), int(self._packets.dts[packet])):
            if ticks == NONE:
                continue
            try:
                self._container.seek(ticks, stream=self._stream, backward=True)
            except av.error.FFmpegError:
                continue
            self._restart(0)
            first = next(self._packets_left, None)
            if first is None or first.pts is None:
                continue
            landed = np.flatnonzero(self._packets.pts == first.pts)
            if len(landed) == 1 and landed[0] <= packet:
                self._packets_left = itertools.chain([first], self._packets_left)
                self._position = int(landed[0])
                return
        self._open()

    def _picture(self, frame: VideoFrame, size: tuple[int, int] | None) -> np.ndarray:
        """The frame as RGB, resized and upright."""
        height, width = self._orientation.coded_size(*(size or (self.info.height, self.info.width)))
        rgb = self._reformatter.reformat(frame, width=width, height=height, format="rgb24", threads=1)
        return self._orientation.upright(rgb.to_ndarray())


class _Damaged(Exception):
    """A wanted frame was decoded, but not intact."""


def _display_matrix(frame: VideoFrame) -> bytes:
    """The frame's display matrix, empty if it has none."""
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            return bytes(data)
    return b""
