"""Decoded sound on a time line: each piece where its timestamp says, silence in gaps, resampled to 16 kHz.

C channels, S samples
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mmllm.tokens import SAMPLE_RATE
from mmllm.video.limits import VideoLimits

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame

_TOLERANCE_S = 0.05
"""Timestamps are rounded in many containers. Sound that is nearer to the end of the sound before it goes on there."""
_FALL_BACK_S = 1.0
"""A clock that falls back further was set anew: sound goes on where it was."""
_LOUDEST = 8.0
"""Samples of damaged floating point sound can have any size; larger ones are cut off."""
_BLOCK = 60 * SAMPLE_RATE
"""Memory is reserved for so many more samples than are needed."""


class SoundLine:
    """Takes decoded frames in stored order.

    Args:
        name: of the file, for messages.
        limits: of the bytes that may be returned.
        begin_s, end_s: the part that is kept.
        steady: whether jumps of the clock by more than a second are real.
        first: keep the first channel; otherwise the mean of all.
    """

    def __init__(
        self, name: str, limits: VideoLimits, *, begin_s: float, end_s: float, steady: bool, first: bool
    ) -> None:
        self._name, self._limits, self._steady, self._first = name, limits, steady, first
        self._begin, self._end = round(begin_s * SAMPLE_RATE), max(0, round(end_s * SAMPLE_RATE))
        self._buffer = np.zeros(0, dtype=np.float32)
        self._length = 0
        """Samples so far, silence included."""
        self._heard = 0
        self._resampler: Any = None
        self._format: tuple[Any, ...] = ()
        self._place = 0
        """Where the next resampled sample belongs, in samples of the frames' clock."""
        self._expected_s = 0.0
        """When the next frame should start."""
        self._shift_s = 0.0

    @property
    def heard_s(self) -> float:
        """Seconds of decoded sound in the part."""
        return self._heard / SAMPLE_RATE

    def add(self, frame: AudioFrame, at_s: float | None) -> bool:
        """Puts a decoded frame at its time on the frames' clock; True if it starts behind the part.

        Args:
            frame: decoded sound.
            at_s: seconds; None if it has no timestamp, and follows the frame before it.
        """
        at_s = self._checked(at_s)
        described = (frame.format.name, frame.layout.name, frame.layout.nb_channels, frame.sample_rate)
        apart = abs(at_s - self._expected_s) > _TOLERANCE_S
        if self._resampler is None or apart or described != self._format:
            self._begin_run(frame, at_s)
            self._format = described
        self._expected_s += frame.samples / frame.sample_rate
        frame.pts = None
        self._put(self._resampler.resample(frame))
        return at_s * SAMPLE_RATE >= self._end

    def finish(self) -> None:
        """Puts what the resampler still holds."""
        if self._resampler is not None:
            self._put(self._resampler.resample(None))
        self._resampler = None

    def samples(self) -> np.ndarray:
        """float32, S: all sound of the part. Called once."""
        self._buffer.resize(self._length, refcheck=False)
        return self._buffer

    def _checked(self, at_s: float | None) -> float:
        """The time of a frame, corrected by jumps of a clock that cannot be right."""
        if at_s is None:
            return self._expected_s
        at_s += self._shift_s
        if self._resampler is None:
            return at_s
        jump_s = at_s - self._expected_s
        if jump_s < -_FALL_BACK_S or (not self._steady and abs(jump_s) > _FALL_BACK_S):
            self._shift_s -= jump_s
            return self._expected_s
        return at_s

    def _begin_run(self, frame: AudioFrame, at_s: float) -> None:
        """Ends the run of sound before, and starts one at `at_s`."""
        import av

        self.finish()
        self._resampler = av.AudioResampler(format="fltp", layout=frame.layout, rate=SAMPLE_RATE)
        self._place, self._expected_s = round(at_s * SAMPLE_RATE), at_s

    def _put(self, frames: list[AudioFrame]) -> None:
        """Appends resampled frames. What is outside of the part, or before the end of earlier sound, is left out."""
        for frame in frames:
            channels = frame.to_ndarray()  # C S
            mono = channels[0] if self._first else channels.mean(axis=0)
            mono = np.nan_to_num(mono.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0).clip(-_LOUDEST, _LOUDEST)
            place, self._place = self._place, self._place + len(mono)
            reached = self._begin + self._length
            mono = mono[max(0, reached - place) : max(0, self._end - place)]
            if not len(mono):
                continue
            self._reserve(max(place, reached) - self._begin + len(mono))
            self._buffer[self._length - len(mono) : self._length] = mono
            self._heard += len(mono)

    def _reserve(self, length: int) -> None:
        """Makes room for so many samples. New ones are silent."""
        self._length = length
        self._limits.check_sound(self._name, length)
        if length <= len(self._buffer):
            return
        room = length + _BLOCK
        if length - len(self._buffer) <= _BLOCK:
            self._buffer.resize(room, refcheck=False)  # mostly in place: the sound is not in memory twice
            return
        longer = np.zeros(room, dtype=np.float32)  # a long silence takes memory when it is read
        longer[: len(self._buffer)] = self._buffer
        self._buffer = longer
