"""Frames of containers that are read as their bytes come, and of devices and addresses that FFmpeg reads itself."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from mmllm.video import _containers
from mmllm.video._display_shape import PixelAspects
from mmllm.video._not_video import kind_of
from mmllm.video._open_options import OpenOptions
from mmllm.video._pictures import PictureMaker
from mmllm.video._pyav_open import Patience, check_decoder, choose_stream, options_keyword, packets_of, rate_of
from mmllm.video.errors import VideoOpenError
from mmllm.video.limits import VideoLimits
from mmllm.video.live.bytes import ByteStream
from mmllm.video.live.clock import StreamClock, Ticks
from mmllm.video.live.frame import LiveFrame

if TYPE_CHECKING:
    from av.container import InputContainer

_PROBE = {"probesize": "1000000", "analyzeduration": "1000000"}
"""How much FFmpeg reads before the first frame comes: at most 1 MB, and 1 s."""
_AS_STREAM = "write MPEG-TS, Matroska or fragmented MP4 (-movflags frag_keyframe+empty_moov) to be read while it grows"


class _Bytes:
    """The head that was read, then the rest of a stream. It has no `name`, from which FFmpeg could guess a format."""

    def __init__(self, head: bytes, source: ByteStream) -> None:
        self._head, self._source, self._over = io.BytesIO(head), source, False

    def read(self, size: int) -> bytes:
        data = self._head.read(size) or (b"" if self._over else self._source.read(size))
        self._over = not data  # FFmpeg asks again, and what comes then is another container
        return data


class _Seekable(_Bytes):
    """The same of a file, whose index may stand at its end."""

    def __init__(self, source: Any) -> None:
        self.read = source.read  # type: ignore[method-assign]
        self.seek, self.tell = source.seek, source.tell


def open_bytes(source: ByteStream, name: str, limits: VideoLimits) -> InputContainer | None:
    """The container that begins with the next bytes of a stream; None if there are none.

    Raises:
        VideoOpenError: if it is none of the allowed containers, or cannot be read from its beginning on.
    """
    import av

    head = b""
    while len(head) < _containers.HEAD_BYTES and (more := source.read(_containers.HEAD_BYTES - len(head))):
        head += more
    if not head:
        return None
    container = _containers.container_of(head)
    if container is None or container in _containers.SOUND:
        raise VideoOpenError(f"{name}: not a video: {kind_of(head) or container or f'it begins with {head[:12]!r}'}")
    target = _Bytes(head, source)
    if container == "mov" and hasattr(source, "seek"):
        source.seek(0)
        target = _Seekable(source)
    options = {"format_whitelist": _containers.DEMUXERS, "max_pixels": str(limits.pixels), **_PROBE}
    try:
        settings: dict[str, Any] = {options_keyword(): options, "metadata_errors": "ignore"}
        return av.open(target, format=container, **settings)
    except (av.error.FFmpegError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        hint = f"; {_AS_STREAM}" if container == "mov" else ""
        raise VideoOpenError(f"{name}: not a readable stream ({container}): {reason}{hint}") from None


def open_by_ffmpeg(name: str, format: str, options: dict[str, str], idle_s: float) -> InputContainer:
    """A device or an address that FFmpeg reads itself.

    Raises:
        VideoOpenError: if it cannot be opened.
    """
    import av

    try:
        return av.open(name, format=format, container_options=_PROBE | options, timeout=(10.0, max(idle_s, 1.0)))
    except (av.error.FFmpegError, ValueError, OSError) as problem:
        raise VideoOpenError(f"{name}: cannot be opened: {getattr(problem, 'strerror', None) or problem}") from None


def live_frames(
    container: InputContainer, name: str, clock: StreamClock, ticks: Ticks, limits: VideoLimits, *, live: bool
) -> Iterator[LiveFrame]:
    """The frames of an open container that `ticks` takes; it is closed at the end.

    Args:
        container: what is read.
        name: in messages.
        clock: of the stream, which goes on if the container is not its first.
        ticks: which frames are taken; only those are converted to RGB.
        limits: of the size of frames and packets.
        live: whether frames come as they are recorded, so that the wall clock says how long a gap was.
    """
    options = OpenOptions(limits=limits)
    with closing(container):
        stream = choose_stream(container, name, None)
        check_decoder(stream, name, limits)
        codec, aspects = stream.codec_context, PixelAspects(container, stream)
        codec.thread_count = 1  # threads by frame hold frames back
        step_s, pictures, last_s = 1 / rate_of(stream), None, None
        clock.begin_anew()
        packets = packets_of(container, [stream], name, limits, Patience(name, np.inf))
        for packet in chain(packets, [None]):  # None takes the frames that the decoder still holds
            for frame in _decoded(aspects, codec, packet):
                now = time.monotonic()
                stamp_s = last_s + step_s if frame.time is None and last_s is not None else float(frame.time or 0.0)
                last_s = stamp_s
                time_s, gap = clock.read(stamp_s, now if live else None)
                if not (ticks.take(time_s) or gap):
                    continue
                pictures = pictures or PictureMaker(name, frame, aspects, codec, options)
                yield LiveFrame(pixels=pictures.picture(frame, None), time_s=time_s, arrived_s=now, gap=gap)


def _decoded(aspects: PixelAspects, codec: Any, packet: Any) -> list[Any]:
    """The frames that the decoder gives after a packet, or its last ones without; none if the packet is damaged."""
    import av

    try:
        return codec.decode(None) if packet is None else aspects.decode(codec, packet)
    except av.error.FFmpegError:
        return []
