"""The clock of a player: where it starts, when it ends, and whether a gap in the picture is a still or a jump.

A player starts its clock with the earliest picture or sound, and ends it with the latest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from mmllm.video import _pyav_open
from mmllm.video._broken_clock import JUMP_S
from mmllm.video._frame_index import NONE, FrameIndex, Packets

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

    from mmllm.video._pyav_decoder import Decoder

_RUNNING_CLOCKS = ("mpegts", "mpeg", "flv")
"""Containers of broadcasts. Their clock runs on while nothing is recorded, and may be set to any other time."""
_MEASURED_ENDS = ("mov", "mpegts", "mpeg", "ogg")
"""Containers for which FFmpeg finds a stream's end in the file's tables or last packets, not in a number of its header."""
_SAME_CLOCK_S = 10.0
"""In a broadcast, streams that start further apart belong to different programmes."""


def container_name(container: InputContainer) -> str:
    """FFmpeg's first name of the container's kind."""
    return str(container.format.name.split(",")[0])


@dataclass(frozen=True, kw_only=True)
class PlayerClock:
    """How the times of a file's frames become times of a player."""

    start: Fraction | None
    """The file's own time in seconds at which a player starts; None if the picture has no times."""
    sound_end: Fraction | None
    """The file's own time in seconds at which the last other stream ends; None if unknown."""
    time_base: Fraction
    """The unit of the picture's times in seconds."""

    def first_frame_s(self, index: FrameIndex) -> float:
        """When the first frame is shown."""
        if self.start is None or index.first_pts is None:
            return 0.0
        return max(0.0, float(index.first_pts * self.time_base - self.start))

    def duration_s(self, index: FrameIndex) -> float:
        """When the last frame or sound ends."""
        picture_end_s = self.first_frame_s(index) + index.duration_s
        if self.start is None or self.sound_end is None:
            return float(picture_end_s)
        return max(float(picture_end_s), float(self.sound_end - self.start))


def clock(decoder: Decoder, packets: Packets, index: FrameIndex, *, cut_short: bool) -> PlayerClock:
    """The clock of an open file. Packets after the last key packet may be read once more, to find the sound's end.

    Args:
        decoder: the open file; afterwards its position is another one.
        packets: the headers of the picture's packets.
        index: the picture's frames.
        cut_short: whether the file ends before what its header declares.
    """
    start, end = _clock_start(decoder.container, decoder.stream), None
    if start is None or index.first_pts is None:
        return PlayerClock(start=None, sound_end=None, time_base=packets.time_base)
    first = index.first_pts * packets.time_base
    if not _pyav_open.trusted_times(decoder.container, decoder.stream):
        start = first
    if not cut_short and not index.breaks:
        picture_end = first + Fraction(index.duration_s)
        keys = packets.pts[packets.key & (packets.pts != NONE)]
        end = _sound_end(decoder, int(keys[-1]) if len(keys) else None, picture_end)
    return PlayerClock(start=start, sound_end=end, time_base=packets.time_base)


def _clock_start(container: InputContainer, picture: VideoStream) -> Fraction | None:
    """The file's own time in seconds at which a player starts, or None if the picture has no times.

    Sound before the time 0 only prepares its decoder and is not played, unless the picture starts before 0, too.
    """
    begin = _start(picture)
    if begin is None:
        return None
    starts = [start for stream in _played(container, picture) if (start := _start(stream)) is not None]
    if container_name(container) in _RUNNING_CLOCKS:
        starts = [start for start in starts if abs(start - begin) < _SAME_CLOCK_S]
    earliest = min([begin, *starts])
    return max(earliest, Fraction(0)) if begin >= 0 else earliest


def declared_end(container: InputContainer, picture: VideoStream) -> float | None:
    """The end of the picture as the header says, in units of the picture's times; None if it does not say."""
    if picture.duration:
        return (picture.start_time or 0) + picture.duration
    if container.duration and picture.time_base:
        begin = max(_start(picture) or Fraction(0), Fraction(container.start_time or 0, 1_000_000))
        return float((begin + Fraction(container.duration, 1_000_000)) / picture.time_base)
    return None


def _sound_end(decoder: Decoder, key_pts: int | None, picture_end: Fraction) -> Fraction | None:
    """The end of the other streams that a player plays, in seconds of the file's own time; None if unknown.

    Args:
        decoder: the open container; afterwards its position is another one.
        key_pts: time of the last key packet, from which on packets are read if the end must be measured.
        picture_end: end of the last frame.
    """
    container, ends, unmeasured = decoder.container, [], []
    for stream in _played(container, decoder.stream):
        start = _start(stream)
        if start is not None and stream.duration and container_name(container) in _MEASURED_ENDS:
            ends.append(start + stream.duration * stream.time_base)
        else:
            unmeasured.append(stream)
    declared = container.duration and Fraction((container.start_time or 0) + container.duration, 1_000_000)
    if unmeasured and key_pts is not None and (not declared or declared > picture_end):
        ends += _last_packets(decoder, unmeasured, key_pts)
    return max(ends, default=None)


def _last_packets(decoder: Decoder, streams: list[Any], key_pts: int) -> Iterator[Fraction]:
    """The ends of the packets of `streams` that are stored after a key packet of the picture."""
    import av

    with _pyav_open.only(decoder.container, streams):
        try:
            decoder.container.seek(key_pts, stream=decoder.stream, backward=True)
            for packet in decoder.packets(streams):
                if packet.pts is not None:
                    yield (packet.pts + (packet.duration or 0)) * packet.time_base
        except av.error.FFmpegError:
            return


class JumpJudge:
    """Tells a jump of the clock from a picture that is shown for long."""

    def __init__(self, decoder: Decoder, packets: Packets, reopened: Callable[[], Decoder]) -> None:
        """Prepares; the file is read again only if a gap must be judged.

        Args:
            decoder: the open container.
            packets: the headers of the picture's packets.
            reopened: opens the container once more.
        """
        self._packets, self._reopened = packets, reopened
        self._sound_s: np.ndarray | None = None
        in_fragments = container_name(decoder.container) == "mov" and not decoder.stream.frames
        self._possible = container_name(decoder.container) in _RUNNING_CLOCKS or in_fragments

    def __call__(self, before: int, after: int) -> bool:
        """Whether the clock jumps between two packets. While a picture is shown for long, the sound goes on."""
        packets = self._packets
        begin_s = float(int(packets.pts[before]) * packets.time_base)
        until_s = begin_s + float(int(packets.duration[before]) * packets.time_base)
        end_s = float(int(packets.pts[after]) * packets.time_base)
        if not self._possible or end_s - until_s <= JUMP_S:
            return False
        if self._sound_s is None:
            self._sound_s = self._sound_times()
        first, last = np.searchsorted(self._sound_s, [begin_s, end_s])
        return bool(np.diff([begin_s, *self._sound_s[first:last], end_s]).max() > JUMP_S)

    def _sound_times(self) -> np.ndarray:
        """float64, ascending: the times of the packets of sound in seconds of the file's own time."""
        with closing(self._reopened()) as decoder:
            sounds = [stream for stream in _played(decoder.container, decoder.stream) if stream.type == "audio"]
            if not sounds:
                return np.zeros(0)
            with _pyav_open.only(decoder.container, sounds):
                times_s = [
                    float(packet.pts * packet.time_base) for packet in decoder.packets(sounds) if packet.pts is not None
                ]
        return np.sort(np.array(times_s))


def _played(container: InputContainer, picture: VideoStream) -> list[Any]:
    """The other streams of sound and picture."""
    return [
        stream
        for stream in (*container.streams.audio, *container.streams.video)
        if stream is not picture and stream.index != picture.index and not _pyav_open.attached(stream)
    ]


def _start(stream: Any) -> Fraction | None:
    return None if stream.start_time is None or not stream.time_base else stream.start_time * stream.time_base
