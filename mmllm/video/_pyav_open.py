"""Opening a container with PyAV, choosing its video stream, reading its packets. No picture is decoded."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

from mmllm.video import _containers
from mmllm.video._claims import check_claims, check_parameters
from mmllm.video._joined_flv import joined_flv
from mmllm.video._not_video import kind_of
from mmllm.video._parameter_sets import sequence_parameters
from mmllm.video._sources import MediaFile
from mmllm.video.errors import LimitExceeded, NoVideoStream, VideoOpenError, VideoTimeout
from mmllm.video.limits import VideoLimits

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

_ATTACHED_PICTURE = 0x400 | 0x800  # cover art and timed thumbnails, in FFmpeg's disposition flags
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
_DEMUX_ERRORS = 64  # after so many errors in a row, the rest of the file is given up


class Patience:
    """The time that the search for one packet may take. FFmpeg itself would read through any length of useless data."""

    def __init__(self, name: str, stall_s: float) -> None:
        self._name, self.stall_s = name, stall_s
        self.restart()

    def restart(self) -> None:
        """Starts the time again, after a packet was found."""
        self._start_s, self.lost = time.monotonic(), False

    def over(self) -> bool:
        """True if the search has taken too long; `lost` is then true until the next restart."""
        self.lost = self.lost or time.monotonic() - self._start_s > self.stall_s
        return self.lost

    def error(self) -> VideoTimeout:
        """The error to raise in that case."""
        return VideoTimeout(
            f"{self._name}: no packet found within {self.stall_s:g} s",
            in_python="raise VideoLimits.stall_s to search longer",
        )


class _PatientStream:
    """A stream that ends when the patience is over. It has no `name`, from which FFmpeg could guess a format."""

    def __init__(self, stream: BinaryIO, patience: Patience) -> None:
        self.seek, self.tell = stream.seek, stream.tell
        self._stream, self._patience = stream, patience

    def read(self, size: int) -> bytes:
        return b"" if self._patience.over() else self._stream.read(size)


def open_container(media: MediaFile, limits: VideoLimits, patience: Patience) -> InputContainer:
    """The open container, of the kind that its first bytes show.

    Raises:
        VideoOpenError: if the container is not an allowed one, or is damaged.
        LimitExceeded: if its header claims more than the limits allow.
        VideoTimeout: if opening takes too long.
    """
    import av

    container = _containers.container_of(media.head)
    if container is None:
        if kind := kind_of(media.head):
            raise VideoOpenError(f"{media.name}: not a video: {kind}")
        raise VideoOpenError(f"{media.name}: not a video of a known container: it begins with {media.head[:12]!r}")
    video_tracks, hint = check_claims(media, container, limits)
    # FFmpeg decodes the first frames of all tracks, so several tracks share the allowed pixels.
    pixels = limits.pixels if video_tracks < 3 else 2 * limits.pixels // video_tracks
    options = {
        "protocol_whitelist": "file",
        "format_whitelist": _containers.DEMUXERS,
        "max_pixels": str(1 if container in _containers.SOUND else pixels),
    }
    joined = joined_flv(media, patience.over) if container == "flv" else None
    if patience.lost:
        raise patience.error()
    try:
        target: Any = media.path
        if joined is not None or target is None:
            target = _PatientStream(joined or media.stream(), patience)
        settings: dict[str, Any] = {options_keyword(): options, "metadata_errors": "ignore"}
        opened = av.open(target, format=container, timeout=patience.stall_s, **settings)
    except (av.error.FFmpegError, ValueError) as problem:
        if isinstance(problem, av.error.ExitError) or patience.lost:
            raise patience.error() from None
        reason = hint or getattr(problem, "strerror", None) or problem
        raise VideoOpenError(f"{media.name}: not a readable video ({container}): {reason}") from None
    try:
        limits.check_streams(media.name, len(opened.streams))
    except LimitExceeded:
        opened.close()
        raise
    return opened


def options_keyword() -> str:
    """The keyword of `av.open` for the options of the container and of all its streams.

    Before version 17.1, PyAV crashes on options of streams that are not in the header, as in MPEG-PS. There only the
    container gets options, and `max_pixels` acts in our decoder, but not yet when FFmpeg decodes the first frames.
    """
    import av

    version = tuple(map(int, av.__version__.split(".")[:2]))
    return "options" if version >= (17, 1) else "container_options"


def describe_streams(container: InputContainer) -> tuple[str, ...]:
    """For each stream its number, kind, codec and size, as text."""
    lines = []
    for stream in container.streams:
        codec = stream.codec_context
        words = [str(stream.index), stream.type or "unknown", codec.name if codec else "(no decoder)"]
        if stream.type == "video" and codec:
            words.append(f"{codec.width}x{codec.height}")
        if attached(stream):
            words.append("cover art")
        lines.append(" ".join(words))
    return tuple(lines)


def choose_stream(container: InputContainer, name: str, number: int | None) -> VideoStream:
    """The video stream to read: stream `number`, or else the best that is not cover art. The others are discarded.

    Raises:
        NoVideoStream: if there is none; the message lists the streams of the file.
        VideoOpenError: if there is no decoder for it.
    """
    streams = describe_streams(container)
    listed = "; ".join(streams) or "none"
    if streams and not container.streams.video:
        raise NoVideoStream(f"{name}: no video stream, so there is nothing to see in it; streams: {listed}")
    if number is not None:
        candidates = [stream for stream in container.streams.video if stream.index == number]
        if not candidates:
            raise NoVideoStream(f"{name}: stream {number} is not a video stream; streams: {listed}")
    else:
        candidates = [stream for stream in container.streams.video if not attached(stream)]
        if not candidates:
            raise NoVideoStream(f"{name}: no video stream; streams: {listed}")
    decodable = [stream for stream in candidates if stream.codec_context is not None]
    if not decodable:
        raise VideoOpenError(f"{name}: no decoder for its codec; streams: {listed}")
    try:
        best = container.streams.best("video")
    except IndexError:  # FFmpeg found a stream after opening, which PyAV does not list
        best = None
    if best not in decodable:
        best = max(decodable, key=lambda stream: stream.codec_context.width * stream.codec_context.height)
    _read_only(container, [best])
    return best


def check_decoder(stream: VideoStream, name: str, limits: VideoLimits) -> None:
    """Refuses a stream whose pictures are too large, or whose decoder would have to keep too many of them.

    Raises:
        LimitExceeded: naming size and reference frames.
    """
    codec = stream.codec_context
    limits.check_size(name, codec.width, codec.height)
    parameters = sequence_parameters(codec.name, codec.extradata or b"")
    if parameters is not None:
        check_parameters(name, parameters, limits)


def rate_of(stream: VideoStream) -> float:
    """Frames a second by the header or by FFmpeg's guess; 25 if both have none."""
    for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate):
        if rate and 0 < rate < 1000:
            return float(rate)
    return 25.0


def packets_of(
    container: InputContainer, streams: Sequence[Any], name: str, limits: VideoLimits, patience: Patience
) -> Iterator[Packet]:
    """The packets of some streams that hold data, in stored order. Damaged places of the container are skipped.

    Raises:
        LimitExceeded: if a packet has too many bytes.
        VideoTimeout: if the search for a packet took too long.
    """
    import av

    errors = 0
    patience.restart()
    while True:
        try:
            for packet in container.demux(*streams):
                errors = 0
                if packet.size:
                    limits.check_packet(name, packet.size)
                    yield packet
                    patience.restart()
            break
        except IndexError:  # raised at the end of a file that has more streams than its header lists
            break
        except av.error.ExitError:
            raise patience.error() from None
        except av.error.FFmpegError:
            errors += 1
            if errors > _DEMUX_ERRORS:
                break
    if patience.lost:
        raise patience.error()


def alpha_decoder(stream: VideoStream, name: str) -> Any:
    """libvpx's decoder for VP8 and VP9 with transparency, which FFmpeg's own decoders leave out; None for all others.

    Matroska and WebM say so by `alpha_mode`, and keep the transparency of each frame beside its packet.

    Raises:
        VideoOpenError: if this FFmpeg was built without libvpx.
    """
    import av

    decoder = _ALPHA_DECODERS.get(stream.codec_context.codec.canonical_name)
    if decoder is None or stream.metadata.get("alpha_mode") != "1":
        return None
    try:
        return av.CodecContext.create(decoder, "r")
    except av.codec.codec.UnknownCodecError:
        raise VideoOpenError(
            f"{name}: its transparency needs the decoder {decoder}, which this FFmpeg lacks; "
            "pip install --force-reinstall av"
        ) from None


def can_drop_unreferenced(codec: Any) -> bool:
    """True if the decoder can skip frames to which no other frame refers, and all others stay the same bit for bit.

    HEVC marks such frames only within a temporal layer, so the stream must have only one layer.
    """
    if codec.name == "hevc":
        configuration = codec.extradata or b""
        return len(configuration) > 21 and configuration[0] == 1 and (configuration[21] >> 3) & 7 == 1
    return codec.name in ("h264", "vp8", "mpeg4", "mpeg2video")


def trusted_times(container: InputContainer, stream: VideoStream) -> bool:
    """False if FFmpeg guesses the presentation times: AVI stores none, and the codec reorders frames."""
    return not (container.format.name == "avi" and stream.codec_context.has_b_frames)


def attached(stream: Any) -> bool:
    """Whether the stream is cover art or a list of thumbnails, which no player shows as the film."""
    flags = getattr(stream, "disposition", 0)  # older versions of PyAV do not have it
    return bool(getattr(flags, "value", flags) & _ATTACHED_PICTURE)


@contextmanager
def only(container: InputContainer, streams: Sequence[Any]) -> Iterator[None]:
    """Reads packets of `streams` alone while the block runs; afterwards those that were read before."""
    before = [(stream, getattr(stream, "discard", None)) for stream in container.streams]
    _read_only(container, streams)
    try:
        yield
    finally:
        for stream, discard in before:
            if discard is not None:
                stream.discard = discard


def _read_only(container: InputContainer, streams: Sequence[Any]) -> None:
    """Makes the container skip the packets of all other streams, if this version of PyAV can."""
    from av import stream as module

    if hasattr(module, "Discard"):
        for stream in container.streams:
            stream.discard = module.Discard.default if stream in streams else module.Discard.all
