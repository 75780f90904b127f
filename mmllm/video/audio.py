"""The sound of a video: decoded from the same file, mono at 16 kHz, on the clock of its frames.

The timestamps of the file say where sound belongs. It may start later or earlier than the picture, and end later or
earlier. Where it is missing there is silence. No memory is allocated by what a header claims.

S samples
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from mmllm.errors import InputError
from mmllm.fields import require
from mmllm.tokens import SAMPLE_RATE, VideoClip
from mmllm.video import _pyav_open
from mmllm.video._open_options import OpenOptions
from mmllm.video._sound_line import SoundLine
from mmllm.video._sources import MediaFile
from mmllm.video.errors import SoundDamaged, VideoDecodeError
from mmllm.video.limits import Deadline

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer

_INDEXED = ("mov", "matroska")
"""Containers in which a seek lands at the right time."""
_SEEK_FROM_S, _BEFORE_S = 30.0, 1.0
"""A part that starts later than this is sought; decoding starts a second earlier, because a decoder needs a few packets
before it gives the right sound."""
_RENEWED_S = 600.0
"""After so many seconds of sound the limit of processor time begins anew."""


@dataclass(frozen=True, kw_only=True)
class SoundOptions:
    """Which sound of a file is heard."""

    track: int | None = None
    """Number of the audio stream, as `mmllm info` shows it; None for the default one."""
    channel: Literal["mean", "first"] = "mean"
    """mean: the mean of all channels. first: the first channel alone, as in TDC."""

    def __post_init__(self) -> None:
        require(self.track is None or self.track >= 0, self, "track", "the number of a stream, from 0, or None")


@dataclass(frozen=True, kw_only=True, eq=False)
class Sound:
    """Sound of a video or of a part of it."""

    samples: np.ndarray
    """float32, S, finite, about -1 to 1, at 16 kHz."""
    start_s: float
    """The instant of the first sample, on the clock of the frames."""

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.samples) / SAMPLE_RATE


class HasSound(Protocol):
    """An open video, as far as sound is concerned."""

    def sound(
        self, options: SoundOptions | None = None, *, start_s: float | None = None, end_s: float | None = None
    ) -> Sound | None:
        """The sound of a part of the video; None without any."""


def with_sound(
    clip: VideoClip, video: HasSound, options: SoundOptions | None, start_s: float | None, end_s: float | None
) -> VideoClip:
    """The clip of a part of a video with that part's sound; the clip as it is without options or without sound."""
    sound = None if options is None else video.sound(options, start_s=start_s, end_s=end_s)
    if sound is None:
        return clip
    return dataclasses.replace(clip, waveform=sound.samples, waveform_start_s=sound.start_s)


def read_sound(
    media: MediaFile,
    opening: OpenOptions,
    options: SoundOptions,
    *,
    clock_start: Fraction | None,
    begin_s: float,
    end_s: float,
    steady: bool,
) -> Sound | None:
    """The sound from `begin_s` to `end_s` on the frames' clock; None if the file has none, or none can be decoded.

    Args:
        media: the file.
        opening: limits, and whether damage is an error.
        options: which sound.
        clock_start: the file's own time in seconds at which the clock starts; None if only the order is known.
        begin_s, end_s: the part. Sound before and behind it is left out.
        steady: whether jumps of the file's clock are real. If not, sound goes on where the clock jumps.

    Raises:
        InputError: if there is no such track.
        VideoDecodeError: for damage, if `opening` is strict.
        VideoTimeout, LimitExceeded: if it takes too long, or the sound would be too large.

    Warns:
        SoundDamaged: if a part of the sound cannot be decoded; it is silent.
    """
    position = None if media.file is None else media.file.tell()
    patience = _pyav_open.Patience(media.name, opening.limits.stall_s)
    try:
        with closing(_pyav_open.open_container(media, opening.limits, patience)) as container:
            stream = _chosen(container, media.name, options.track)
            if stream is None:
                return None
            line = SoundLine(
                media.name,
                opening.limits,
                begin_s=begin_s,
                end_s=end_s,
                steady=steady,
                first=options.channel == "first",
            )
            with _pyav_open.only(container, [stream]):
                _sought(container, stream, clock_start, begin_s)
                packets = _pyav_open.packets_of(container, [stream], media.name, opening.limits, patience)
                errors, count = _decoded(packets, stream, line, clock_start, opening, media.name)
    finally:
        if media.file is not None and position is not None:
            media.file.seek(position)  # the file is also that of the reader of the pictures
    samples = line.samples()
    if errors:
        heard = f"{line.heard_s:.2f} s of it are heard" if line.heard_s else "nothing is heard"
        warnings.warn(
            f"{media.name}: its sound ({stream_name(stream)}) is damaged: {errors} of {count} packets cannot be "
            f"decoded; {heard}",
            SoundDamaged,
            stacklevel=4,
        )
    return Sound(samples=samples, start_s=begin_s) if line.heard_s else None


def _decoded(
    packets: Iterator[Any],
    stream: AudioStream,
    line: SoundLine,
    clock_start: Fraction | None,
    opening: OpenOptions,
    name: str,
) -> tuple[int, int]:
    """Decodes packets into `line`, up to the end of the part; how many were damaged, and how many there were."""
    import av

    deadline, renewed_s = Deadline(name, opening.limits.cpu_s), _RENEWED_S
    errors = count = 0
    start = clock_start
    ended = False
    for packet in _with_end(packets):
        deadline.check("decoding its sound")
        count += packet is not None
        try:
            frames: list[AudioFrame] = stream.codec_context.decode(packet)
        except av.error.EOFError:
            break
        except av.error.FFmpegError as problem:
            if opening.strict:
                raise VideoDecodeError(f"{name}: sound, packet {count}: {problem}") from None
            errors += 1
            continue
        for frame in frames:
            time = None if frame.pts is None or frame.time_base is None else frame.pts * frame.time_base
            if start is None and time is not None:
                start = time
            at_s = None if time is None or start is None else float(time - start)
            try:
                ended = line.add(frame, at_s)
            except (av.error.FFmpegError, ValueError):  # a rate or a layout that nobody can convert
                errors += 1
        if ended:
            break
        if line.heard_s > renewed_s:
            renewed_s += _RENEWED_S
            deadline.restart()
    line.finish()
    return errors, count


def _with_end(packets: Iterator[Any]) -> Iterator[Any]:
    """The packets, then None, which asks a decoder for what it still holds."""
    yield from packets
    yield None


def _sought(container: InputContainer, stream: AudioStream, clock_start: Fraction | None, begin_s: float) -> None:
    """Seeks the container to shortly before a late part, if its kind has an index."""
    import av

    if begin_s < _SEEK_FROM_S or clock_start is None or container.format.name.split(",")[0] not in _INDEXED:
        return
    instant = clock_start + Fraction(begin_s - _BEFORE_S)
    try:
        container.seek(int(instant / Fraction(stream.time_base)), stream=stream, backward=True)
    except av.error.FFmpegError:
        return  # then it is decoded from its start


def _chosen(container: InputContainer, name: str, track: int | None) -> AudioStream | None:
    """The audio stream with this number, or the default one; None if the file has no sound.

    Raises:
        InputError: if there is no such audio stream; the message lists the streams.
    """
    streams = container.streams.audio
    if track is not None:
        for stream in streams:
            if stream.index == track:
                return _decodable(stream, name)
        listed = "; ".join(_pyav_open.describe_streams(container)) or "none"
        raise InputError(f"{name}: stream {track} is not an audio stream; streams: {listed}")
    if not streams:
        return None
    return _decodable(default_track(container) or streams[0], name)


def default_track(container: InputContainer) -> AudioStream | None:
    """The audio stream that a player plays: marked as default, or else the best; None without any."""
    try:
        best = container.streams.best("audio")
    except IndexError:  # FFmpeg found a stream after opening, which PyAV does not list
        return None
    return best if best in container.streams.audio else None


def _decodable(stream: AudioStream, name: str) -> AudioStream | None:
    if stream.codec_context is not None:
        return stream
    warnings.warn(
        f"{name}: no decoder for its sound (stream {stream.index}); nothing is heard", SoundDamaged, stacklevel=5
    )
    return None


def stream_name(stream: AudioStream) -> str:
    """Codec, rate and channels of an audio stream, such as `aac 48000 Hz stereo`."""
    codec = stream.codec_context
    if codec is None:
        return "(no decoder)"
    layout = getattr(codec.layout, "name", "") or f"{codec.channels} channels"
    return f"{codec.name} {codec.sample_rate or 'unknown'} Hz {layout}"


def audio_tracks(container: InputContainer) -> tuple[str, ...]:
    """For each audio stream its number, codec, rate and channels; the one that is heard by default says so."""
    best = default_track(container)
    return tuple(
        f"{stream.index} {stream_name(stream)}{' (default)' if stream is best else ''}"
        for stream in container.streams.audio
    )
