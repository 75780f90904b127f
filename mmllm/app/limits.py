"""How much one user, and all users together, may ask of the demo."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mmllm.errors import InputError
from mmllm.fields import require
from mmllm.video.limits import UPLOAD_LIMITS, VideoLimits


@dataclass(frozen=True, kw_only=True)
class DemoLimits:
    """Upper bounds; none of them can be raised from the page."""

    upload_mb: int = 200
    """Size of an uploaded file."""
    all_uploads_mb: int = 2000
    """Size of all files that are kept at a time; more uploads are refused until old ones have gone."""
    upload_age_s: int = 2 * 3600
    """Uploads and exported files are removed after so many seconds."""
    video_s: float = 30 * 60.0
    """Length of a video."""
    frames: int = 200
    """Sampled frames."""
    question_characters: int = 500
    new_tokens: int = 128
    """Tokens of an answer."""
    answer_s: float = 60.0
    """Seconds that an answer may take."""
    waiting: int = 64
    """Questions that wait at a time; more are refused with a message."""
    turns: int = 100
    """Questions about one video in one visit."""
    visits: int = 12
    """Videos that one visitor has open."""
    kept_videos: int = 32
    """Encoded videos that are kept in memory."""
    kept_bytes: int = 1 << 30
    """Their size."""

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            require(getattr(self, name) > 0, self, name, "positive")

    @property
    def video(self) -> VideoLimits:
        """What the video reader is told."""
        return replace(UPLOAD_LIMITS, seconds=self.video_s)

    def question(self, text: str) -> str:
        """A question, without white space around it.

        Raises:
            InputError: if it is empty or too long.
        """
        text = " ".join(text.split())
        if not text:
            raise InputError("the question is empty: write one, or choose one of the suggestions")
        if len(text) > self.question_characters:
            raise InputError(f"the question has {len(text)} characters; at most {self.question_characters} are allowed")
        return text

    def checked_frames(self, frames: float) -> int:
        """A number of frames that a user chose.

        Raises:
            InputError: if it is not a whole number from 1 to the limit.
        """
        if not isinstance(frames, (int, float)) or not 1 <= frames <= self.frames or frames != int(frames):
            raise InputError(f"{frames} frames: must be a whole number from 1 to {self.frames}")
        return int(frames)
