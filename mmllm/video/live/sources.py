"""What `mmllm watch` follows: a file that grows, a pipe, a folder that fills, a camera, an address of RTSP."""

from __future__ import annotations

import math
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from mmllm.errors import InputError
from mmllm.video.errors import NoFrames, VideoOpenError, VideoTimeout
from mmllm.video.limits import VideoLimits
from mmllm.video.live.bytes import ByteStream, GrowingFile, Pipe
from mmllm.video.live.clock import GAP_S, StreamClock, Ticks
from mmllm.video.live.decoding import live_frames, open_by_ffmpeg, open_bytes
from mmllm.video.live.folder import folder_frames
from mmllm.video.live.frame import LiveFrame
from mmllm.video.names import existing, is_address, nearest

STDIN = "-"
_RTSP = {"rtsp_transport": "tcp", "protocol_whitelist": "rtp,rtsp,rtsps,srtp,tcp,tls,udp"}
_RETRY_S = 1.0


def follow(
    source: str,
    rate: float,
    *,
    fps: float = 5.0,
    idle_s: float = 10.0,
    gap_s: float = GAP_S,
    allow_address: bool = False,
    limits: VideoLimits | None = None,
    stopped: Callable[[], bool] = lambda: False,
    skipped: Callable[[str], None] | None = None,
) -> Iterator[LiveFrame]:
    """The frames of a stream as they come, for as long as it lasts.

    Args:
        source: a file, a named pipe, `-` for the standard input, a folder, a camera such as /dev/video0, or an address
            that begins with `rtsp://` or `rtsps://`.
        rate: frames a second that are taken.
        fps: images a second of a folder of images.
        idle_s: after so many seconds in which nothing comes, the stream is over.
        gap_s: frames that are further apart have a gap between them.
        allow_address: whether an address may be connected to.
        limits: of the size of frames.
        stopped: asked between frames and while waiting; True ends the stream.
        skipped: is told of a file of a folder that cannot be read.

    Raises:
        VideoOpenError: if the source is missing or no video.
        NoFrames: if it ends without a frame.
        InputError: if an option is not allowed, or an address is not.
    """
    _check(rate=rate, fps=fps, gap_s=gap_s)
    if not (math.isfinite(idle_s) and idle_s >= 0):
        raise InputError(f"idle_s must be zero or more seconds, not {idle_s}")
    place = _place(source, allow_address)
    clock, ticks, limits = StreamClock(gap_s), Ticks(rate), limits or VideoLimits()
    if isinstance(place, Path) and place.is_dir():
        frames = _without_skipped(folder_frames(place, fps, clock, ticks, limits, idle_s, stopped), skipped)
    else:
        frames = _followed(place, source, clock, ticks, limits, idle_s, stopped)
    return _at_least_one(frames, source, idle_s, stopped)


def _without_skipped(items: Iterator[LiveFrame | str], skipped: Callable[[str], None] | None) -> Iterator[LiveFrame]:
    """The frames of a folder; its files that cannot be read are told."""
    for item in items:
        if isinstance(item, LiveFrame):
            yield item
        elif skipped is not None:
            skipped(item)


def _at_least_one(
    frames: Iterator[LiveFrame], source: str, idle_s: float, stopped: Callable[[], bool]
) -> Iterator[LiveFrame]:
    """The frames.

    Raises:
        NoFrames: if there are none, and nobody has stopped the stream.
    """
    came = False
    for frame in frames:
        came = True
        yield frame
    if not came and not stopped():
        raise NoFrames(f"{source}: nothing to see came within {idle_s:g} s")


def _check(**numbers: float) -> None:
    for name, value in numbers.items():
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} must be a positive number, not {value}")


def _place(source: str, allow_address: bool) -> Path | str:
    """The path, or the text of an address or of the standard input.

    Raises:
        VideoOpenError: if there is no such file.
        InputError: for an address that is not allowed.
    """
    if source == STDIN:
        return source
    if is_address(source):
        if urlsplit(source).scheme not in ("rtsp", "rtsps"):
            raise InputError(
                f"{source}: of addresses only rtsp:// and rtsps:// are followed; pipe others in from ffmpeg"
            )
        if not allow_address:
            raise InputError(f"{source}: an address is connected to only with --allow-address")
        return source
    place = existing(source)
    if place is None:
        raise VideoOpenError(f"{source}: No such file or directory{nearest(source)}")
    return place


def _followed(
    place: Path | str,
    source: str,
    clock: StreamClock,
    ticks: Ticks,
    limits: VideoLimits,
    idle_s: float,
    stopped: Callable[[], bool],
) -> Iterator[LiveFrame]:
    """Frames of one container after the other, if the source can go on after it has ended."""
    bytes_of = _byte_stream(place, idle_s, stopped)
    if bytes_of is None:
        yield from _by_ffmpeg(str(place), clock, ticks, limits, idle_s, stopped)
        return
    live = not isinstance(bytes_of, GrowingFile)
    with closing(bytes_of):
        while not stopped() and (container := open_bytes(bytes_of, source, limits)) is not None:
            yield from live_frames(container, source, clock, ticks, limits, live=live)
            if not bytes_of.resumes:
                return


def _byte_stream(place: Path | str, idle_s: float, stopped: Callable[[], bool]) -> ByteStream | None:
    """What bytes are read from; None for what FFmpeg reads itself.

    Raises:
        VideoOpenError: if it cannot be opened, or is of another kind.
    """
    if isinstance(place, str):
        return Pipe(None, idle_s, stopped) if place == STDIN else None
    try:
        mode = place.stat().st_mode
        if stat.S_ISREG(mode):
            return GrowingFile(place, idle_s, stopped)
        if stat.S_ISFIFO(mode):
            return Pipe(place, idle_s, stopped)
    except OSError as problem:
        raise VideoOpenError(f"{place}: {problem.strerror or problem}") from None
    if stat.S_ISCHR(mode) and place.name.startswith("video"):
        return None
    raise VideoOpenError(f"{place}: neither a file, a folder, a named pipe nor a camera")


def _by_ffmpeg(
    name: str,
    clock: StreamClock,
    ticks: Ticks,
    limits: VideoLimits,
    idle_s: float,
    stopped: Callable[[], bool],
) -> Iterator[LiveFrame]:
    """Frames of a camera or an address; after an interruption it is opened again, for `idle_s` seconds."""
    form, options = ("rtsp", _RTSP) if is_address(name) else ("v4l2", {})
    until: float | None = None  # None until a frame has come: what cannot be opened at first is an error
    while not stopped():
        try:
            container = open_by_ffmpeg(name, form, options, idle_s)
            for frame in live_frames(container, name, clock, ticks, limits, live=True):
                until = time.monotonic() + idle_s
                yield frame
                if stopped():
                    return
        except (VideoOpenError, VideoTimeout):
            if until is None:
                raise
        if until is None or time.monotonic() > until:
            return
        time.sleep(_RETRY_S)
