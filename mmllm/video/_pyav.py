"""The reference reader: PyAV with exact times. It decodes only what the requested frames need, if the file allows it.

The packets are read once. They declare which frames exist, their presentation times, and the key frame from which each
must be decoded. If the packets turn out to be wrong (damage, guessed or missing timestamps), the file is decoded from
its start and frames are counted. So an index means the same frame as in a decode of the whole file, unless the damage
is in a part that was never decoded.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np

from mmllm.errors import InputError
from mmllm.video import _broken_clock, _damage, _frame_index, _player_clock, _pyav_open
from mmllm.video._deinterlacing import FIELD_ORDERS, Deinterlacer
from mmllm.video._frame_index import FrameIndex
from mmllm.video._jump_judge import JumpJudge
from mmllm.video._open_options import OpenOptions
from mmllm.video._pictures import PictureMaker
from mmllm.video._pyav_decoder import Decoder
from mmllm.video._pyav_packets import PacketSource, PacketTable
from mmllm.video._pyav_sparse import NotAsDeclared, SparseDecoder
from mmllm.video._reader import IndexChanged, VideoReader
from mmllm.video._sources import MediaFile
from mmllm.video.audio import Sound, SoundOptions, audio_tracks, read_sound
from mmllm.video.errors import ClockBroken, NoFrames, VideoDecodeError, VideoTruncated
from mmllm.video.info import VideoInfo
from mmllm.video.limits import Deadline

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

_logger = logging.getLogger(__name__)


class PyAVReader(VideoReader):
    """Reads a file, bytes or a file object with PyAV."""

    def __init__(self, media: MediaFile, options: OpenOptions) -> None:
        self._media, self._options, self.limits = media, options, options.limits
        self._complete = False
        """True once the whole file was decoded; the index then lists exactly the frames that can be decoded."""
        self._damage: dict[str, int] = {}
        self._sparse: SparseDecoder | None = None
        self._running = self._deadline()
        self._decoder: Decoder | None = Decoder(media, options)
        try:
            self._prepare(self._decoder)
        except BaseException:
            self.close()
            raise

    # Opening

    def _prepare(self, decoder: Decoder) -> None:
        """Reads all packets, decodes until the first frame comes out, and builds the index."""
        # 1. Read the packets; decode them until a frame comes out.
        name, table = self._media.name, PacketTable(self._media.name, decoder.codec, self.limits)
        frames: list[VideoFrame] = []
        decoded_packets = 0
        for packet in decoder.packets():
            table.add(packet)
            if not frames:
                frames = decoder.decode(packet, decoded_packets)
                decoded_packets += 1
        frames = frames or decoder.decode(None)
        packets = table.packets(decoder.stream.time_base)
        if not frames:
            raise NoFrames(f"{name}: none of its {len(packets)} video packets ({decoder.codec.name}) can be decoded")
        # 2. Build the index, the clock and the header.
        first = frames[0]
        self._packets, self._rate = packets, _pyav_open.rate_of(decoder.stream)
        self._end = _player_clock.declared_end(decoder.container, decoder.stream)
        self._index: FrameIndex = _frame_index.from_packets(
            packets,
            self._rate,
            trusted=_pyav_open.trusted_times(decoder.container, decoder.stream),
            first_pts=first.pts,
            end=self._end,
            held_back=_broken_clock.frames_held_back(decoder.codec.codec.canonical_name),
            is_jump=JumpJudge(decoder, packets, lambda: Decoder(self._media, self._options)),
        )
        self._aspects = decoder.aspects
        self._pictures = PictureMaker(name, first, self._aspects, decoder.codec, self._options)
        self._fields: Deinterlacer | None = None
        if self._options.deinterlace:
            self._fields = Deinterlacer(expected=first.interlaced_frame)
        self._header = self._describe(decoder, first)
        if self._index.problem:
            message = f"{name}: {self._index.problem}; times are estimated from the order of the frames"
            warnings.warn(message, ClockBroken, stacklevel=4)
        as_declared = len(self._index) > 0 and (first.pts is None or first.pts == self._index.first_pts)
        if not (as_declared and table.intact):
            self._decode_for_index()
        self._clock = _player_clock.clock(decoder, packets, self._index, cut_short=self._header["truncated"])
        self.limits.check_duration(name, self.info.duration_s)
        # 3. Prepare for decoding single frames. If the packets are in memory, the decoder goes on from here.
        if self._index.pts is not None:
            retimed = self._index.retimed
            source = PacketSource(decoder, packets, table.held, retimed)
            unchanged = retimed is None and not self._clock.sought
            if unchanged and table.held is not None and decoded_packets < len(packets):
                source.position = decoded_packets
                self._sparse = SparseDecoder(decoder, source, self._index, frames)
            else:
                decoder.codec.flush_buffers()
                self._sparse = SparseDecoder(decoder, source, self._index, None)

    def _describe(self, decoder: Decoder, first: VideoFrame) -> dict[str, Any]:
        """The entries of `VideoInfo` that decoding cannot change. Warns if the file is cut short."""
        container, declared = decoder.container.format.name.split(",")[0], decoder.stream.frames
        missing = _damage.cut_short(self._media, container, declared, len(self._packets))
        if missing and self._options.strict:
            raise VideoDecodeError(f"{self._media.name}: cut short: {missing}")
        if missing:
            warnings.warn(f"{self._media.name}: cut short: {missing}", VideoTruncated, stacklevel=5)
        return {
            "source": self._media.name,
            "backend": "pyav",
            "container": container,
            "codec": decoder.codec.codec.canonical_name,
            "pixel_format": first.format.name,
            "width": self._pictures.width,
            "height": self._pictures.height,
            **self._describe_picture(decoder, first),
            "hdr": self._pictures.hdr,
            "rotation": self._pictures.orientation.rotation,
            "mirrored": self._pictures.orientation.mirrored,
            "stream": decoder.stream.index,
            "streams": _pyav_open.describe_streams(decoder.container),
            "audio": audio_tracks(decoder.container),
            "declared_frames": declared or None,
            "truncated": bool(missing),
        }

    def _describe_picture(self, decoder: Decoder, first: VideoFrame) -> dict[str, Any]:
        """The entries of `VideoInfo` about the shape, the fields and the colours of a frame as it is stored."""
        coded_height, coded_width, aspect = self._pictures.coded_shape
        colours = self._pictures.colours
        return {
            "coded_width": coded_width,
            "coded_height": coded_height,
            "pixel_aspect": (aspect.numerator, aspect.denominator),
            "interlaced": first.interlaced_frame,
            "field_order": FIELD_ORDERS.get(int(getattr(decoder.stream.codec_context, "field_order", 0)), "unknown"),
            "deinterlaced": first.interlaced_frame and self._fields is not None,
            "matrix": colours.matrix,
            "matrix_assumed": colours.assumed is not None,
            "full_range": colours.full_range,
            "transparent": colours.transparent,
        }

    @property
    def info(self) -> VideoInfo:
        index = self._index
        return VideoInfo(
            duration_s=self._clock.duration_s(index),
            start_s=float((index.first_pts or 0) * self._packets.time_base),
            first_frame_s=float(self.times_s[0]),
            last_frame_s=float(self.times_s[-1]),
            num_frames=len(index),
            average_fps=len(index) / index.duration_s,
            variable_rate=index.variable_rate,
            time_estimated=index.estimated,
            **self._header,
        )

    @property
    def times_s(self) -> np.ndarray:
        return self._index.times_s + self._clock.first_frame_s(self._index)

    @property
    def clock_repaired(self) -> bool:
        """Whether some frames are shown at other times than the file says, because those cannot be right."""
        return self._index.retimed is not None

    def sound(
        self, options: SoundOptions | None = None, *, start_s: float | None = None, end_s: float | None = None
    ) -> Sound | None:
        begin_s, duration_s = start_s or 0.0, self.info.duration_s
        last_s = duration_s if end_s is None else min(end_s, duration_s)
        if not 0 <= begin_s <= duration_s or (end_s is not None and end_s <= begin_s):
            raise InputError(f"{self._media.name}: no part from {start_s} to {end_s} s; it lasts {duration_s:.3f} s")
        if not self._header["audio"] or begin_s >= last_s:
            return None
        return read_sound(
            self._media,
            self._options,
            options or SoundOptions(),
            clock_start=self._clock.start,
            begin_s=begin_s,
            end_s=last_s,
            steady=not self.clock_repaired,
        )

    def close(self) -> None:
        if self._decoder is not None:
            self._decoder.close()
        self._decoder = self._sparse = None

    def renew_deadline(self) -> None:
        self._running.restart()

    def damage(self) -> Mapping[str, Any]:
        return dict(self._damage)

    def change(self) -> str:
        """In what a later key frame differs from the first frame: its shape or its fields; else empty.

        Only key frames are decoded. This works on a closed reader, too. A stream of key frames alone is not searched if
        its container states the shape, since that would be a decode of the whole file.
        """
        if self._aspects.fixed and self._packets.key.all():
            return ""
        first_interlaced = self._header["interlaced"] or self._fields is None
        with closing(Decoder(self._media, self._options, self._aspects)) as decoder:
            decoder.codec.skip_frame = "NONKEY"
            for frame in decoder.frames(self._deadline()):
                if self._pictures.changed(frame):
                    return "its frames change their shape"
                if frame.interlaced_frame and not first_interlaced:
                    return "some of its frames are interlaced"
        return ""

    # Reading

    def decode(self, indices: np.ndarray, size: tuple[int, int] | None) -> Iterator[tuple[int, np.ndarray]]:
        self._require_open()
        if len(indices) == 0:
            return
        if self._sparse is None or self._index.pts is None:
            yield from self._decode_by_order(indices, size)
            return
        try:
            while len(indices):
                self._running = self._deadline()
                decoded = self._sparse.frames(self._needed(indices), self._running)
                for number, frame in self._deinterlaced(decoded, set(indices.tolist())):
                    yield number, self._pictures.picture(frame, size)
                indices = indices[:0] if self._fields is None else self._fields.take_postponed()
        except NotAsDeclared:
            self._decode_for_index()
            raise IndexChanged from None

    def decode_all(self, size: tuple[int, int] | None) -> Iterator[tuple[float, np.ndarray]]:
        self._require_open()
        latest_s, deadline = 0.0, self._deadline()
        for number, frame in self._deinterlaced(enumerate(self._decode_from_start(deadline)), None, complete=True):
            latest_s = max(latest_s, self._time_of(frame, number))
            yield latest_s, self._pictures.picture(frame, size)
            deadline.restart()

    def _require_open(self) -> None:
        if self._decoder is None:
            raise VideoDecodeError(f"{self._media.name}: the reader is closed")

    def _needed(self, indices: np.ndarray) -> list[int]:
        """The frames that must be decoded for the requested ones: neighbours, too, if fields are expected."""
        return (indices if self._fields is None else self._fields.needed(indices, len(self._index))).tolist()

    def _deinterlaced(
        self, decoded: Iterable[tuple[int, VideoFrame]], requested: set[int] | None, *, complete: bool = False
    ) -> Iterator[tuple[int, VideoFrame]]:
        """Number and frame of each requested frame, or of each for None; `complete` as for `Deinterlacer.frames`."""
        if self._fields is not None:
            return self._fields.frames(decoded, requested, complete=complete)
        return ((number, frame) for number, frame in decoded if requested is None or number in requested)

    def _deadline(self) -> Deadline:
        return Deadline(self._media.name, self.limits.cpu_s)

    def _time_of(self, frame: VideoFrame, number: int) -> float:
        """When a frame is shown, in seconds; `number` counts the frames that came out of the decoder."""
        index = self._index
        if index.pts is None and number < len(index):
            after_first_s = float(index.times_s[number])
        elif frame.pts is not None and index.first_pts is not None:
            after_first_s = float((frame.pts - index.first_pts) * self._packets.time_base)
        else:
            after_first_s = number / self._rate
        return after_first_s + self._clock.first_frame_s(index)

    def _decode_from_start(self, deadline: Deadline) -> Generator[VideoFrame, None, None]:
        """All frames of the file, from a fresh decoder. Packets that cannot be decoded are skipped and counted."""
        with closing(Decoder(self._media, self._options, self._aspects)) as decoder:
            try:
                yield from decoder.frames(deadline, self._index.retimed)
            finally:
                counts = {"decode_errors": decoder.errors, "corrupt_frames": decoder.corrupt}
                self._damage |= {name: count for name, count in counts.items() if count > self._damage.get(name, 0)}

    def _decode_by_order(self, indices: np.ndarray, size: tuple[int, int] | None) -> Iterator[tuple[int, np.ndarray]]:
        """Decodes from the start and counts frames. If it gets to the end of the file, the index is corrected.

        Raises:
            IndexChanged: if that changes the index.
        """
        requested, last = set(indices.tolist()), int(indices[-1])
        to_the_end = not self._complete and last == len(self._index) - 1
        stop = last if self._fields is None else last + 1  # the last one's neighbour
        pts: list[int | None] = []

        def counted(frames: Iterator[VideoFrame]) -> Iterator[tuple[int, VideoFrame]]:
            for number, frame in enumerate(frames):
                pts.append(frame.pts)
                yield number, frame
                if number >= stop and not to_the_end:
                    return

        self._running = self._deadline()
        with closing(self._decode_from_start(self._running)) as frames:
            for number, frame in self._deinterlaced(counted(frames), requested, complete=True):
                yield number, self._pictures.picture(frame, size)
        if (to_the_end or len(pts) <= stop) and not self._complete and self._replace_index(pts):
            raise IndexChanged
        if self._damage and not self._complete and self._decode_for_index():
            raise IndexChanged

    def _decode_for_index(self) -> bool:
        """Decodes the whole file and indexes the frames that come out; True if this changes the index."""
        changed = self._replace_index([frame.pts for frame in self._decode_from_start(self._deadline())])
        if self._damage:
            counts = (self._damage.get("decode_errors", 0), self._damage.get("corrupt_frames", 0))
            _logger.warning(
                "%s: damaged: %d packets cannot be decoded, %d frames are damaged; %d frames are used",
                *(self._media.name, *counts, len(self._index)),
            )
        return changed

    def _replace_index(self, pts: list[int | None]) -> bool:
        """Replaces the index by the frames of a full decode, given their `pts`; True if any time differs."""
        if not pts:
            raise NoFrames(f"{self._media.name}: no frame can be decoded")
        previous = self._index
        self._index = _frame_index.from_decoding(pts, self._packets, self._rate, previous, self._end)
        self._complete = True
        return not np.array_equal(previous.times_s, self._index.times_s)
