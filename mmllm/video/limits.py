"""Limits of memory and time for one video, checked before memory is allocated and between packets."""

from __future__ import annotations

import time
from dataclasses import dataclass

from mmllm.fields import require
from mmllm.video.errors import LimitExceeded, VideoTimeout


@dataclass(frozen=True, kw_only=True)
class VideoLimits:
    """Upper bounds for one video. The defaults are for your own files, `UPLOAD_LIMITS` for files of strangers."""

    pixels: int = 40_000_000
    """Width x height of one frame. 8K (7680 x 4320) fits, 8192 x 8192 does not."""
    frames: int = 2_000_000
    """Frames of the whole file: about nine hours at 60 a second."""
    seconds: float = 24 * 3600.0
    """Length of the whole file."""
    streams: int = 64
    """Streams of the file, of all kinds together."""
    packet_bytes: int = 256 << 20
    """Bytes of one packet: what the file stores for one frame."""
    decoder_bytes: int = 640 << 20
    """Bytes of the frames that a decoder must keep to predict others. 8K with twelve reference frames fits."""
    returned_bytes: int = 4 << 30
    """Bytes of pixels that one call may return or hold."""
    cpu_s: float | None = 120.0
    """Processor seconds that one call may take, a piece of a video that is taken in pieces, or `iterate` from one frame
    to the next; None for no deadline."""
    stall_s: float = 60.0
    """Seconds by the clock that the search for one packet may take. Some files hold no packet for a long stretch."""
    child_s: float = 120.0
    """Seconds by the clock that one call, or a piece of a video that is taken in pieces, may take in a decoder's child
    process, which is then killed."""
    download_bytes: int = 4 << 30
    """Bytes of a file that is downloaded from a URL."""
    download_s: float = 600.0
    """Seconds by the clock that the download may take."""

    def __post_init__(self) -> None:
        for name in (
            "pixels",
            "frames",
            "seconds",
            "streams",
            "packet_bytes",
            "decoder_bytes",
            "returned_bytes",
            "stall_s",
            "child_s",
            "download_bytes",
            "download_s",
        ):
            require(getattr(self, name) > 0, self, name, "positive")
        require(self.cpu_s is None or self.cpu_s > 0, self, "cpu_s", "a positive number of seconds, or None")

    def check_size(self, source: str, width: int, height: int) -> None:
        """Refuses pictures with too many pixels."""
        if width * height > self.pixels:
            raise LimitExceeded(
                f"{source}: {width} x {height} = {width * height} pixels a frame; allowed are {self.pixels}: "
                "make a smaller copy, for example by ffmpeg -i IN -vf scale=1920:-2 OUT",
                in_python="or raise VideoLimits.pixels",
            )

    def check_frames(self, source: str, frames: int) -> None:
        """Refuses files with too many frames."""
        if frames > self.frames:
            raise LimitExceeded(
                f"{source}: {frames} frames or more; allowed are {self.frames}: cut it into parts",
                in_python="or raise VideoLimits.frames",
            )

    def check_duration(self, source: str, duration_s: float) -> None:
        """Refuses files that last too long."""
        if duration_s > self.seconds:
            raise LimitExceeded(
                f"{source}: {duration_s:.0f} s long; allowed are {self.seconds:.0f} s: cut it into parts",
                in_python="or raise VideoLimits.seconds",
            )

    def check_streams(self, source: str, streams: int) -> None:
        """Refuses files with too many streams."""
        if streams > self.streams:
            raise LimitExceeded(
                f"{source}: {streams} streams; allowed are {self.streams}: copy the video alone, "
                "by ffmpeg -i IN -map 0:v:0 -c copy OUT",
                in_python="or raise VideoLimits.streams",
            )

    def check_packet(self, source: str, size: int) -> None:
        """Refuses packets with too many bytes."""
        if size > self.packet_bytes:
            raise LimitExceeded(
                f"{source}: {size >> 20} MiB are stored for one frame; allowed are {self.packet_bytes >> 20} MiB",
                in_python="raise VideoLimits.packet_bytes to read it anyway",
            )

    def check_decoder(self, source: str, width: int, height: int, references: int, depth: int) -> None:
        """Refuses videos whose decoder would have to keep too many frames.

        Args:
            source: the name in the message.
            width: of a frame in pixels.
            height: of a frame in pixels.
            references: frames that the stream tells the decoder to keep.
            depth: bits of a sample.
        """
        size = (references + 1) * width * height * 3 // 2 * (1 if depth <= 8 else 2)
        if size > self.decoder_bytes:
            raise LimitExceeded(
                f"{source}: {references} reference frames of {width} x {height} are {size >> 20} MiB; allowed are "
                f"{self.decoder_bytes >> 20} MiB: make a smaller copy, for example by "
                "ffmpeg -i IN -vf scale=1920:-2 OUT",
                in_python="or raise VideoLimits.decoder_bytes",
            )

    def check_returned(self, source: str, frames: int, height: int, width: int) -> None:
        """Refuses results that would take too much memory."""
        size = frames * height * width * 3
        if size > self.returned_bytes:
            raise LimitExceeded(
                f"{source}: {frames} frames of {width} x {height} are {size >> 20} MiB; allowed are "
                f"{self.returned_bytes >> 20} MiB (ask for a smaller size or fewer frames)"
            )

    def check_sound(self, source: str, samples: int) -> None:
        """Refuses sound that would take too much memory, in samples of four bytes."""
        if 4 * samples > self.returned_bytes:
            raise LimitExceeded(
                f"{source}: more than {self.returned_bytes >> 20} MiB of sound: look at a part of it, or cut it "
                "into parts",
                in_python="or raise VideoLimits.returned_bytes",
            )


UPLOAD_LIMITS = VideoLimits(
    frames=300_000,
    seconds=3 * 3600.0,
    streams=32,
    packet_bytes=64 << 20,
    decoder_bytes=320 << 20,
    returned_bytes=1 << 30,
    cpu_s=30.0,
    stall_s=20.0,
    child_s=60.0,
    download_bytes=1 << 30,
    download_s=60.0,
)
"""For files of strangers: at most three hours of video, and in one call 1 GiB of pixels and 30 processor seconds."""


class Deadline:
    """A limit of the calling thread's processor time. It is not clock time, so a busy machine makes no video fail."""

    def __init__(self, source: str, cpu_s: float | None) -> None:
        self._source, self._allowed_s = source, cpu_s
        self.restart()

    def restart(self) -> None:
        """Starts the time again, for work that returns a part and then waits for its caller."""
        self._start_s, self._start_cpu_s = time.monotonic(), time.thread_time()

    def check(self, doing: str) -> None:
        """Raises VideoTimeout if the time is used up; the message says what was being done."""
        # A thread's processor time never exceeds clock time, and asking for processor time is slow.
        if self._allowed_s is None or time.monotonic() - self._start_s <= self._allowed_s:
            return
        if time.thread_time() - self._start_cpu_s > self._allowed_s:
            raise VideoTimeout(
                f"{self._source}: stopped after {self._allowed_s:g} processor seconds while {doing}: "
                "ask for fewer frames, or cut it into parts",
                in_python="or raise VideoLimits.cpu_s",
            )
