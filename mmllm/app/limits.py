"""Limits of the demo and of the server: for each visitor, and for all visitors together."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mmllm.errors import InputError
from mmllm.fields import require
from mmllm.video.limits import UPLOAD_LIMITS, VideoLimits

MOST_FRAMES = 10_000
"""Most frames that `--frames` of `mmllm demo` may allow."""


@dataclass(frozen=True, kw_only=True)
class VisitorLimits:
    """Upper bounds of everything that is open to visitors; a visitor cannot raise them."""

    upload_mb: int = 200
    """Megabytes of one uploaded file."""
    all_uploads_mb: int = 2000
    """Megabytes of all stored files; above this, uploads are refused until old files have been removed."""
    upload_age_s: int = 2 * 3600
    """Seconds after which uploads and exported files are removed."""
    video_s: float = 90 * 60.0
    """Seconds of one video."""
    frames: int = 200
    """Frames sampled from one video."""
    question_characters: int = 500
    """Characters of a question."""
    new_tokens: int = 128
    """Tokens of an answer."""
    answer_s: float = 60.0
    """Seconds of generation for one answer."""
    waiting: int = 64
    """Questions in the queue; more are refused with a message."""
    kept_videos: int = 32
    """Encoded videos in memory."""
    kept_bytes: int = 1 << 30
    """Bytes of all encoded videos in memory."""

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            require(0 < getattr(self, name) < 2**53, self, name, "a positive number below 2^53")

    @property
    def video(self) -> VideoLimits:
        """The limits of the video reader."""
        return replace(UPLOAD_LIMITS, seconds=self.video_s)

    def question(self, text: str) -> str:
        """The question with single spaces and none at its ends.

        Raises:
            InputError: if it is empty or too long.
        """
        text = " ".join(text.split())
        if not text:
            raise InputError("the question is empty: write a question, or choose a suggestion")
        if len(text) > self.question_characters:
            raise InputError(f"the question has {len(text)} characters; at most {self.question_characters} are allowed")
        return text

    def checked_frames(self, frames: float) -> int:
        """The number of frames that a visitor chose, as an integer.

        Raises:
            InputError: if the number is not a whole number from 1 to the limit.
        """
        if not isinstance(frames, (int, float)) or not 1 <= frames <= self.frames or frames != int(frames):
            raise InputError(f"the number of frames must be a whole number from 1 to {self.frames}, not {frames}")
        return int(frames)


@dataclass(frozen=True, kw_only=True)
class DemoLimits(VisitorLimits):
    """Upper bounds of the demo."""

    parts: int = 8
    """Parts of a video that are looked at before one answer."""
    turns: int = 100
    """Questions about one video in one visit."""
    visits: int = 12
    """Videos that one visitor has open."""
