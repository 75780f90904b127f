"""The clock of a player: where it starts, and when it ends.

A player starts its clock with the earliest picture or sound, and ends it with the latest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from mmllm.video import _pyav_open
from mmllm.video._frame_index import FrameIndex
from mmllm.video._packet_headers import NONE, Packets

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

    from mmllm.video._pyav_decoder import Decoder

RUNNING_CLOCKS = ("mpegts", "mpeg", "flv")
"""Containers of broadcasts. Their clock runs on while nothing is recorded, and may be set to any other time."""
_MEASURED_ENDS = ("mov", "mpegts", "mpeg", "ogg")
"""Containers for which FFmpeg finds a stream's end in the file's tables or last packets, not in its header."""
_PLAUSIBLE_S = 10
"""Sound that ends more seconds after the picture is looked for in the file, whatever its tables say."""
_NEAR_S = Fraction(1, 10)
"""A header whose end is so near to the picture's is believed, because a search would take longer than it is worth."""
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
    sought: bool = False
    """Whether the container was sought for the sound's end, which empties its decoders."""

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
    start = _clock_start(decoder.container, decoder.stream)
    if start is None or index.first_pts is None:
        return PlayerClock(start=None, sound_end=None, time_base=packets.time_base)
    first = index.first_pts * packets.time_base
    if not _pyav_open.trusted_times(decoder.container, decoder.stream):
        start = first
    if cut_short or index.breaks:
        return PlayerClock(start=start, sound_end=None, time_base=packets.time_base)
    picture_end = first + Fraction(index.duration_s)
    ends, unmeasured = _known_ends(decoder, picture_end)
    keys = np.flatnonzero(packets.key)
    times = [] if len(keys) == 0 else [int(packets.dts[keys[-1]]), int(packets.pts[keys[-1]])]
    key_time = next((time for time in times if time != NONE), None)
    container = decoder.container
    declared = container.duration and Fraction((container.start_time or 0) + container.duration, 1_000_000)
    sought = False
    if unmeasured and declared and declared <= picture_end + _NEAR_S:
        ends.append(declared)
    elif unmeasured and key_time is not None:
        ends += _last_packets(decoder, unmeasured, key_time)
        sought = True
    return PlayerClock(start=start, sound_end=max(ends, default=None), time_base=packets.time_base, sought=sought)


def _clock_start(container: InputContainer, picture: VideoStream) -> Fraction | None:
    """The file's own time in seconds at which a player starts, or None if the picture has no times.

    Sound before the time 0 only prepares its decoder and is not played, unless the picture starts before 0, too.
    """
    begin = _start(picture)
    if begin is None:
        return None
    starts = [start for stream in played(container, picture) if (start := _start(stream)) is not None]
    if container_name(container) in RUNNING_CLOCKS:
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


def _known_ends(decoder: Decoder, picture_end: Fraction) -> tuple[list[Fraction], list[Any]]:
    """The ends of the other streams in seconds of the file's own time, and the streams whose end must be measured."""
    ends, unmeasured = [], []
    for stream in played(decoder.container, decoder.stream):
        start, duration = _start(stream), stream.duration
        known = start is not None and duration and container_name(decoder.container) in _MEASURED_ENDS
        end = start + duration * stream.time_base if known else None
        if end is None or end > picture_end + _PLAUSIBLE_S:
            unmeasured.append(stream)
        else:
            ends.append(end)
    return ends, unmeasured


def _last_packets(decoder: Decoder, streams: list[Any], key_time: int) -> Iterator[Fraction]:
    """The ends of the packets of `streams` that are stored after a key packet of the picture."""
    import av

    try:
        decoder.container.seek(key_time, stream=decoder.stream, backward=True)
    except av.error.FFmpegError:
        return
    with _pyav_open.only(decoder.container, streams):
        for packet in decoder.packets(streams):
            if packet.pts is not None:
                yield (packet.pts + (packet.duration or 0)) * packet.time_base


def played(container: InputContainer, picture: VideoStream) -> list[Any]:
    """The other streams of sound and picture."""
    return [
        stream
        for stream in (*container.streams.audio, *container.streams.video)
        if stream is not picture and stream.index != picture.index and not _pyav_open.attached(stream)
    ]


def _start(stream: Any) -> Fraction | None:
    return None if stream.start_time is None or not stream.time_base else stream.start_time * stream.time_base
