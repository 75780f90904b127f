"""An open file with its decoder: packets go in, frames come out, damage is counted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mmllm.video import _pyav_open
from mmllm.video._open_options import OpenOptions
from mmllm.video._sources import MediaFile
from mmllm.video.errors import VideoDecodeError
from mmllm.video.limits import Deadline

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.frame import VideoFrame


class Decoder:
    """An open container and its decoder. At first the container is at its start. Decoding uses one thread."""

    def __init__(self, media: MediaFile, options: OpenOptions) -> None:
        self._media, self._options = media, options
        self._patience = _pyav_open.Patience(media.name, options.limits.stall_s)
        self.container: Any = None
        self.stream: Any = None
        self.codec: Any = None
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
            self.codec = self.stream.codec_context
            _pyav_open.check_decoder(self.stream, name, limits)
        except BaseException:
            self.close()
            raise
        self.codec.options = {"max_pixels": str(limits.pixels)}
        self.codec.thread_type, self.codec.thread_count = "NONE", 1
        self._can_drop, self._dropping = _pyav_open.can_drop_unreferenced(self.codec), False

    def packets(self) -> Iterator[Packet]:
        """The packets from the container's position on."""
        return _pyav_open.packets_of(
            self.container, self.stream, self._media.name, self._options.limits, self._patience
        )

    def frames(self, deadline: Deadline) -> Iterator[VideoFrame]:
        """All frames from the container's position on. Packets that cannot be decoded are skipped and counted."""
        for number, packet in enumerate(self.packets()):
            deadline.check("decoding")
            yield from self.decode(packet, number)
        yield from self.decode(None)

    def decode(self, packet: Packet | None, number: int = -1) -> list[VideoFrame]:
        """The frames that come out after a packet; with None, the frames that the decoder still holds.

        Raises:
            VideoDecodeError: for damage, if the option `strict` is set.
        """
        import av

        try:
            frames = self.codec.decode(packet)
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
