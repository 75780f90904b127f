"""Options for opening a video, as one value that can be sent to another process."""

from __future__ import annotations

from dataclasses import dataclass, field

from mmllm.fields import require
from mmllm.video.limits import VideoLimits


@dataclass(frozen=True, kw_only=True)
class OpenOptions:
    """The options of `open_video`, except the source and the backend."""

    limits: VideoLimits = field(default_factory=VideoLimits)
    stream: int | None = None
    """Number of the video stream to read; None for the best stream that is not cover art."""
    strict: bool = False
    """Whether damage is an error. If not, damaged packets are skipped and counted."""
    tone_map: bool = False
    """Whether HDR pictures are converted to the ordinary range. Without it they look washed out."""
    deinterlace: bool = True
    """Whether frames that are marked as interlaced are de-interlaced."""

    def __post_init__(self) -> None:
        require(self.stream is None or self.stream >= 0, self, "stream", "the number of a stream, from 0, or None")
