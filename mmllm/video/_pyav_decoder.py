"""An open file with its decoder: packets go in, frames come out, damage is counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mmllm.video import _pyav_open
from mmllm.video._display_shape import PixelAspects
from mmllm.video._open_options import OpenOptions
from mmllm.video._packet_headers import NONE
from mmllm.video._sources import MediaFile
from mmllm.video.errors import VideoDecodeError
from mmllm.video.limits import Deadline

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.frame import VideoFrame

_SEQUENCE_HEADER = b"\x00\x00\x01\xb3"
"""Begins the header of MPEG-1 and MPEG-2 that states the size, in three bytes."""


class Decoder:
    """An open container and its decoder. At first the container is at its start. Decoding uses one thread.

    Args:
        media: the file.
        options: limits, the number of the stream, and whether damage is an error.
        aspects: what is known of the pixels' aspects from an earlier decoder of the same stream.
    """

    def __init__(self, media: MediaFile, options: OpenOptions, aspects: PixelAspects | None = None) -> None:
        self._media, self._options = media, options
        self._patience = _pyav_open.Patience(media.name, options.limits.stall_s)
        self.container: Any = None
        self.stream: Any = None
        self.codec: Any = None
        self._sequence_size: bytes | None = None
        """The last stated size; None for other codings than MPEG-1 and MPEG-2."""
        self.aspects: Any = aspects
        """Of the stream's pixels, from the first opening on."""
        self.errors = 0
        """Packets that could not be decoded."""
        self.corrupt = 0
        """Frames that came out damaged."""
        self.open()

    def open(self) -> None:
        """Opens the file at its start, with a fresh decoder. An open file is closed first."""
        self.close()
        name, limits = self._media.name, self._options.limits
        self._patience.restart()
        self.container = _pyav_open.open_container(self._media, limits, self._patience)
        try:
            self.stream = _pyav_open.choose_stream(self.container, name, self._options.stream)
            coded = self.stream.codec_context
            _pyav_open.check_decoder(self.stream, name, limits)
            self.codec = _pyav_open.alpha_decoder(self.stream, name) or coded
            self.aspects = self.aspects or PixelAspects(self.container, self.stream)
            self.codec.copy_opaque = not self.aspects.fixed  # for the marks on packets
        except BaseException:
            self.close()
            raise
        self.codec.options = {"max_pixels": str(limits.pixels)}
        self.codec.thread_type, self.codec.thread_count = "NONE", 1
        self._sequence_size = b"" if self.codec.name in ("mpeg1video", "mpeg2video") else None
        self._can_drop, self._dropping = _pyav_open.can_drop_unreferenced(self.codec), False

    def packets(self, streams: Sequence[Any] = ()) -> Iterator[Packet]:
        """The packets of `streams`, or of the video stream, from the container's position on."""
        return _pyav_open.packets_of(
            self.container, streams or (self.stream,), self._media.name, self._options.limits, self._patience
        )

    def frames(self, deadline: Deadline, pts: np.ndarray | None = None) -> Iterator[VideoFrame]:
        """All frames from the container's start on. Packets that cannot be decoded are skipped and counted.

        Args:
            deadline: for the whole reading.
            pts: int64, times that replace those of the packets.
        """
        for number, packet in enumerate(self.packets()):
            deadline.check("decoding")
            yield from self.decode(packet if pts is None else retimed(packet, number, pts), number)
        yield from self.decode(None)

    def decode(self, packet: Packet | None, number: int = -1) -> list[VideoFrame]:
        """The frames that come out after a packet; with None, the frames that the decoder still holds.

        Raises:
            VideoDecodeError: for damage, if the option `strict` is set.
        """
        import av

        try:
            frames = self.decode_exactly(packet)
        except av.error.EOFError:
            return []
        except av.error.FFmpegError as problem:
            if self._options.strict:
                raise VideoDecodeError(f"{self._media.name}: packet {number}: {problem}") from None
            self.errors += 1
            return []
        corrupt = sum(frame.is_corrupt for frame in frames)
        if corrupt and self._options.strict:
            raise VideoDecodeError(f"{self._media.name}: a damaged frame near packet {number}")
        self.corrupt += corrupt
        return frames

    def decode_exactly(self, packet: Packet | None) -> list[VideoFrame]:
        """The frames that come out after a packet, or at the end.

        Raises:
            FFmpegError: for damage.
        """
        if self.aspects.fixed or packet is None:
            frames: list[VideoFrame] = self.codec.decode(packet)
            return frames
        held = self._before_new_size() if self._has_new_size(packet) else []
        return [*held, *self.aspects.decode(self.codec, packet)]

    def _has_new_size(self, packet: Packet) -> bool:
        """True for a packet of MPEG-1 or MPEG-2 whose sequence header states another size than the one before."""
        if self._sequence_size is None or not packet.is_keyframe:
            return False
        start = bytes(memoryview(packet)[:256])
        header = start.find(_SEQUENCE_HEADER) + len(_SEQUENCE_HEADER)
        if header < len(_SEQUENCE_HEADER):
            return False
        previous, self._sequence_size = self._sequence_size, start[header : header + 3]
        return previous not in (b"", self._sequence_size)

    def _before_new_size(self) -> list[VideoFrame]:
        """The frames that the decoder still holds, which FFmpeg's decoder of MPEG-2 would drop at a new size."""
        import av

        try:
            frames: list[VideoFrame] = self.codec.decode(None)
        except av.error.EOFError:
            frames = []
        self.codec.flush_buffers()
        return frames

    def drop_unreferenced(self, drop: bool) -> None:
        """Sets whether the decoder may skip frames from which no other frame is predicted."""
        if self._can_drop and drop != self._dropping:
            self.codec.skip_frame = "NONREF" if drop else "DEFAULT"
            self._dropping = drop

    def close(self) -> None:
        """Releases the file and the decoder's memory. A second call does nothing."""
        if self.container is not None:
            self.container.close()
        self.container = self.stream = self.codec = None


def retimed(packet: Packet, number: int, pts: np.ndarray) -> Packet:
    """The packet with another presentation time, by which its frame is recognised; it has no decoding time then."""
    if number < len(pts):
        packet.pts, packet.dts = None if pts[number] == NONE else int(pts[number]), None
    return packet
