"""The reference reader: PyAV, exact times, only the wanted frames decoded as far as the file allows.

A frame is found by its presentation time: the packets, read once, say which frames there are and from which key
frame each must be decoded. Where that promise does not hold (damage, guessed or missing timestamps), the file is
decoded from its start, and frames are known by their order alone. So an index means the same frame as in a decode
of the whole file, unless damage stands in a part that was never decoded.
"""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from mmllm.datasets import _damage, _frame_index, _pyav_open
from mmllm.datasets._frame_index import NONE, FrameIndex
from mmllm.datasets._open_options import OpenOptions
from mmllm.datasets._pictures import PictureMaker
from mmllm.datasets._reader import IndexChanged, VideoReader
from mmllm.datasets._sources import MediaFile
from mmllm.datasets.video_errors import NoFrames, VideoDecodeError, VideoTruncated
from mmllm.datasets.video_info import VideoInfo
from mmllm.datasets.video_limits import Deadline

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.frame import VideoFrame

_SKIP_PACKETS = 256
"""Up to so many packets are stepped over rather than sought."""
_logger = logging.getLogger(__name__)


class PyAVReader(VideoReader):
    """Reads a file, bytes or a file object with PyAV."""

    def __init__(self, media: MediaFile, options: OpenOptions) -> None:
        self._media, self._options, self.limits = media, options, options.limits
        self._container: Any = None
        self._stream: Any = None
        self._codec: Any = None
        self._packets_left: Iterator[Packet] = iter(())
        self._seekable, self._complete = True, False
        self._errors = self._corrupt = 0
        try:
            self._open()
            self._prepare()
        except BaseException:
            self.close()
            raise

    # Opening

    def _open(self) -> None:
        """Opens the container at its start, with a decoder that has seen nothing."""
        self.close()
        self._container = _pyav_open.open_container(self._media, self.limits)
        self._stream = _pyav_open.choose_stream(self._container, self._media.name, self._options.stream)
        self._codec = self._stream.codec_context
        self.limits.check_size(self._media.name, self._codec.width, self._codec.height)
        self._codec.options = {"max_pixels": str(self.limits.pixels)}
        self._codec.thread_type, self._codec.thread_count = "NONE", 1
        self._can_drop, self._dropping = _pyav_open.can_drop_unreferenced(self._codec), False
        self._errors = self._corrupt = 0
        self._start_at(0)

    def _start_at(self, position: int) -> None:
        """Takes note that the next packet is number `position` and that the decoder is empty."""
        self._packets_left = _pyav_open.packets_of(self._container, self._stream)
        self._position, self._fresh = position, True

    def _prepare(self) -> None:
        """Reads all packets, and decodes until the first frame that a decode from the start shows."""
        name, codec = self._media.name, self._codec
        table = _pyav_open.PacketTable(name, codec, self.limits)
        first: VideoFrame | None = None
        for packet in self._remaining():
            if packet is not None:
                table.add(packet)
            if first is None:
                first = next(iter(self._decoded(packet)), None)
        packets = table.packets(self._stream.time_base)
        if first is None:
            raise NoFrames(f"{name}: not one of its {len(packets)} video packets ({codec.name}) can be decoded")
        if first.pts is not None:
            packets.hidden[(packets.pts != NONE) & (packets.pts < first.pts)] = True
        self._packets = packets
        self._rate = _pyav_open.rate_of(self._stream)
        trusted = _pyav_open.trusted_times(self._container, self._stream)
        self._index: FrameIndex = _frame_index.from_packets(packets, self._rate, trusted=trusted)
        self._pictures = PictureMaker(first, tone_map=self._options.tone_map)
        self._header = self._describe(first)
        promised = len(self._index) > 0 and (first.pts is None or first.pts == self._index.first_pts)
        if not (promised and table.intact):
            self._learn()
        self.limits.check_duration(name, self._index.duration_s)

    def _describe(self, first: VideoFrame) -> dict[str, Any]:
        """What stays true of the video whatever decoding shows."""
        container, declared = self._container.format.name.split(",")[0], self._stream.frames
        cut = _damage.cut_short(self._media, container, declared, len(self._packets))
        if cut and self._options.strict:
            raise VideoDecodeError(f"{self._media.name}: cut short: {cut}")
        if cut:
            warnings.warn(f"{self._media.name}: cut short: {cut}", VideoTruncated, stacklevel=5)
        return {
            "source": self._media.name,
            "backend": "pyav",
            "container": container,
            "codec": self._codec.codec.canonical_name,
            "pixel_format": first.format.name,
            "width": self._pictures.width,
            "height": self._pictures.height,
            "hdr": self._pictures.hdr,
            "rotation": self._pictures.orientation.rotation,
            "mirrored": self._pictures.orientation.mirrored,
            "stream": self._stream.index,
            "streams": _pyav_open.describe_streams(self._container),
            "declared_frames": declared or None,
            "truncated": bool(cut),
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

    @property
    def times_s(self) -> np.ndarray:
        return self._index.times_s

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
        self._packets_left = iter(())
        self._container = self._stream = self._codec = None  # the decoder's memory goes with it

    def damage(self) -> Mapping[str, Any]:
        counts = {"decode_errors": self._errors, "corrupt_frames": self._corrupt}
        return {name: count for name, count in counts.items() if count}

    # Reading in order

    def decode(self, indices: np.ndarray, size: tuple[int, int] | None) -> Iterator[tuple[int, np.ndarray]]:
        self._require_open()
        if len(indices) == 0:
            return iter(())
        if self._index.pts is None:
            return self._decode_by_order(indices, size)
        return self._decode_sparsely(indices, size)

    def decode_all(self, size: tuple[int, int] | None) -> Iterator[tuple[float, np.ndarray]]:
        self._require_open()
        latest_s = 0.0
        for number, frame in enumerate(self._decode_from_start()):
            latest_s = max(latest_s, self._time_of(frame, number))
            yield latest_s, self._pictures.picture(frame, size)

    def _time_of(self, frame: VideoFrame, number: int) -> float:
        """When a frame is shown that came out of the decoder as number so many."""
        index = self._index
        if index.pts is None and number < len(index):
            return float(index.times_s[number])
        if frame.pts is not None:
            return float((frame.pts - index.first_pts) * self._packets.time_base)
        return number / self._rate

    def _require_open(self) -> None:
        if self._container is None:
            raise VideoDecodeError(f"{self._media.name}: the reader is closed")

    def _decode_from_start(self) -> Iterator[VideoFrame]:
        """All frames of the file, stepping over packets that cannot be decoded."""
        self._open()
        deadline = Deadline(self._media.name, self.limits.cpu_s)
        for packet in self._remaining():
            deadline.check("decoding")
            yield from self._decoded(packet)

    def _remaining(self) -> Iterator[Packet | None]:
        self._fresh = False
        for packet in self._packets_left:
            self._position += 1
            yield packet
        yield None  # tells the decoder to give what it still holds

    def _decoded(self, packet: Packet | None) -> list[VideoFrame]:
        """The frames that come out of the decoder once a packet went in; damage is counted."""
        import av

        corrupt: Any = 0
        try:
            frames = self._codec.decode(packet)
            corrupt = sum(frame.is_corrupt for frame in frames)
        except av.error.EOFError:
            frames = []
        except av.error.FFmpegError as problem:
            if self._options.strict:
                raise VideoDecodeError(f"{self._media.name}: packet {self._position - 1}: {problem}") from None
            frames, self._errors = [], self._errors + 1
        if corrupt and self._options.strict:
            raise VideoDecodeError(f"{self._media.name}: damaged near packet {self._position - 1}")
        self._corrupt += corrupt
        return frames

    def _decode_by_order(self, indices: np.ndarray, size: tuple[int, int] | None) -> Iterator[tuple[int, np.ndarray]]:
        """Counts frames from the start. At the end of the file, what was counted becomes the index."""
        wanted, last = set(indices.tolist()), int(indices[-1])
        to_the_end = not self._complete and last == len(self._index) - 1
        pts: list[int | None] = []
        for number, frame in enumerate(self._decode_from_start()):
            pts.append(frame.pts)
            if number in wanted:
                yield number, self._pictures.picture(frame, size)
            if number >= last and not to_the_end:
                break
        else:
            if not self._complete and self._replace_index(pts):
                raise IndexChanged
        if self._errors and not self._complete and self._learn():
            raise IndexChanged

    def _learn(self) -> bool:
        """Decodes everything once to know which frames there really are; True if they are not those promised."""
        changed = self._replace_index([frame.pts for frame in self._decode_from_start()])
        if self._errors or self._corrupt:
            _logger.warning(
                "%s: damaged: %d packets cannot be decoded and %d frames are not intact; %d frames are used",
                *(self._media.name, self._errors, self._corrupt, len(self._index)),
            )
        return changed

    def _replace_index(self, pts: list[int | None]) -> bool:
        """Takes what a decode from start to end has shown for the index; True if it differs from what was known."""
        if not pts:
            raise NoFrames(f"{self._media.name}: no frame can be decoded")
        usual = int(np.median(self._packets.duration)) if len(self._packets) else 0
        before, time_base = self._index, self._packets.time_base or Fraction(1)
        self._index = _frame_index.from_decoding(pts, time_base, self._rate, usual)
        self._complete = True
        return not np.array_equal(before.times_s, self._index.times_s)

    # Reading here and there

    def _decode_sparsely(self, indices: np.ndarray, size: tuple[int, int] | None) -> Iterator[tuple[int, np.ndarray]]:
        """Decodes from a key frame to the last wanted frame that leans on it, one such run after another."""
        import av

        index = self._index
        assert index.pts is not None
        assert index.packet is not None
        assert index.start is not None
        pending: dict[int, int] = {}
        runs: dict[int, list[int]] = {}
        for number in indices.tolist():
            runs.setdefault(int(index.start[number]), []).append(number)
        deadline = Deadline(self._media.name, self.limits.cpu_s)
        try:
            for start in sorted(runs):
                if self._fresh or self._position != start:
                    yield from self._wanted(self._drained(), pending, size)
                    if pending:
                        break
                    self._go_to(start)
                pending.update({int(index.pts[number]): number for number in runs[start]})
                packets = {int(index.packet[number]) for number in runs[start]}
                for position in range(self._position, max(packets) + 1):
                    deadline.check("decoding")
                    self._drop_unreferenced(position not in packets)
                    packet = self._next_packet()
                    self._fresh = False
                    yield from self._wanted(self._codec.decode(packet), pending, size)
            yield from self._wanted(self._drained(), pending, size)
        except (av.error.FFmpegError, StopIteration, _Damaged):
            pass
        if pending:
            self._learn()
            raise IndexChanged

    def _wanted(
        self, frames: list[VideoFrame], pending: dict[int, int], size: tuple[int, int] | None
    ) -> Iterator[tuple[int, np.ndarray]]:
        for frame in frames:
            if frame.pts in pending:
                if frame.is_corrupt:
                    raise _Damaged
                yield pending.pop(frame.pts), self._pictures.picture(frame, size)

    def _drop_unreferenced(self, drop: bool) -> None:
        """Whether the decoder may pass over frames that no other frame is predicted from."""
        if self._can_drop and drop != self._dropping:
            self._codec.skip_frame = "NONREF" if drop else "DEFAULT"
            self._dropping = drop

    def _drained(self) -> list[VideoFrame]:
        """The frames that the decoder still holds; it is empty afterwards."""
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

    def _next_packet(self) -> Packet:
        packet = next(self._packets_left)
        self._position += 1
        return packet

    def _go_to(self, packet: int) -> None:
        """Makes `packet` the next one, with an empty decoder."""
        near = self._position <= packet <= self._position + _SKIP_PACKETS
        if not near and not (self._seekable and self._sought(packet)) and packet < self._position:
            self._open()
        while self._position < packet:
            self._next_packet()

    def _sought(self, packet: int) -> bool:
        """Jumps to `packet` or somewhat before it; False, and back at the start, where the container cannot."""
        import av

        for ticks in (int(self._packets.pts[packet]), int(self._packets.dts[packet])):
            if ticks == NONE:
                continue
            try:
                self._container.seek(ticks, stream=self._stream, backward=True)
            except av.error.FFmpegError:
                continue
            self._start_at(0)
            first = next(self._packets_left, None)
            if first is None or first.pts is None:
                continue
            landed = np.flatnonzero(self._packets.pts == first.pts)
            if len(landed) == 1 and landed[0] <= packet:
                self._packets_left = itertools.chain([first], self._packets_left)
                self._position = int(landed[0])
                return True
        self._seekable = False
        self._open()
        return False


class _Damaged(Exception):
    """A wanted frame was decoded, but not intact."""
