"""How a video is to be opened, in one value that can also be sent to another process."""

from __future__ import annotations

from dataclasses import dataclass, field

from mmllm.fields import require
from mmllm.video.limits import VideoLimits


@dataclass(frozen=True, kw_only=True)
class OpenOptions:
    """What `open_video` takes besides the source and the backend."""

    limits: VideoLimits = field(default_factory=VideoLimits)
    stream: int | None = None
    """Number of the video stream to read; None for the best one that is no cover art."""
    strict: bool = False
    """Damage is an error rather than something to step over and count."""
    tone_map: bool = False
    """HDR pictures are brought to the range of ordinary ones; otherwise they look washed out."""

    def __post_init__(self) -> None:
        require(self.stream is None or self.stream >= 0, self, "stream", "the number of a stream, from 0, or None")
