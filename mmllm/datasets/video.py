"""Opening videos: the one reader behind training, evaluation, `ask` and the demo.

```python
with open_video("clip.mp4") as video:
    print(video.info.duration_s, video.info.average_fps)
    clip = video.frames_at([0.0, 1.5, 3.0], size=224)
```

Times are seconds as decoded, counted from the first shown frame. Frames are uint8 RGB, upright. What a file claims
is never believed over what is in it: see `VideoInfo` and the errors below.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from mmllm.datasets._open_options import OpenOptions
from mmllm.datasets._reader import Size, Transform, VideoReader
from mmllm.datasets._sources import media_file
from mmllm.datasets.video_errors import (
    LimitExceeded,
    NoFrames,
    NoVideoStream,
    VideoDecodeError,
    VideoError,
    VideoOpenError,
    VideoTimeout,
    VideoTruncated,
)
from mmllm.datasets.video_info import VideoInfo
from mmllm.datasets.video_limits import UPLOAD_LIMITS, VideoLimits
from mmllm.errors import InputError
from mmllm.tokens import VideoClip

__all__ = [
    "UPLOAD_LIMITS",
    "Backend",
    "LimitExceeded",
    "NoFrames",
    "NoVideoStream",
    "Size",
    "Transform",
    "VideoDecodeError",
    "VideoError",
    "VideoInfo",
    "VideoLimits",
    "VideoOpenError",
    "VideoReader",
    "VideoTimeout",
    "VideoTruncated",
    "open_video",
    "probe",
    "sample_uniform",
]

Backend = Literal["auto", "pyav", "decord", "torchcodec"]


def open_video(
    source: Any,
    backend: Backend = "auto",
    *,
    limits: VideoLimits | None = None,
    stream: int | None = None,
    strict: bool = False,
    tone_map: bool = False,
    inside: str | Path | None = None,
) -> VideoReader:
    """A reader of a video.

    Args:
        source: a path, bytes, or a binary file object.
        backend: "auto" and "pyav" read with PyAV.
        limits: how much the video may cost.
        stream: number of the video stream to read; by default the best one that is no cover art.
        strict: raise at the first sign of damage, where otherwise damage is stepped over and counted.
        tone_map: bring HDR pictures to the range of ordinary ones; otherwise they look washed out.
        inside: a folder that a path must not lead out of, links resolved.

    Raises:
        VideoOpenError: missing, not a regular file, not a video.
        NoVideoStream: sound only.
        NoFrames: nothing can be decoded.
        LimitExceeded: too large or too long.

    Warns:
        VideoTruncated: the file ends before what its header declares.
    """
    from mmllm.datasets._pyav import PyAVReader

    if backend not in ("auto", "pyav"):
        raise InputError(f"backend must be auto or pyav, not {backend!r}")
    options = OpenOptions(limits=limits or VideoLimits(), stream=stream, strict=strict, tone_map=tone_map)
    return PyAVReader(media_file(source, inside=inside), options)


def sample_uniform(
    source: Any,
    frames: int,
    *,
    backend: Backend = "auto",
    transform: Transform | None = None,
    size: Size | None = None,
    start_s: float | None = None,
    end_s: float | None = None,
    limits: VideoLimits | None = None,
) -> VideoClip:
    """T frames spread evenly over a video or a part of it, by LITA's rule.

    Args:
        source: whatever `open_video` takes, or an open reader.
        frames: T. A video with fewer frames repeats some; `real` of the clip tells which.
        backend: as for `open_video`.
        transform: applied to each uint8 frame (H W 3) as it is decoded, so that memory stays bounded; the clip
            holds its results.
        size: resize while decoding: the shorter edge in pixels, or (height, width).
        start_s, end_s: part of the video to look at, in seconds.
        limits: how much the video may cost.
    """
    if isinstance(source, VideoReader):
        return source.sample_uniform(frames, start_s=start_s, end_s=end_s, size=size, transform=transform)
    with open_video(source, backend, limits=limits) as video:
        return video.sample_uniform(frames, start_s=start_s, end_s=end_s, size=size, transform=transform)


def probe(source: Any, *, limits: VideoLimits = UPLOAD_LIMITS) -> VideoInfo:
    """What is known of a video after reading its packets and decoding one frame; cheap, and under a deadline.

    Raises:
        VideoError: the same as `open_video`.
    """
    with open_video(source, limits=limits) as video:
        return video.info
