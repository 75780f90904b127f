"""Opening videos. Training, evaluation, `ask` and the demo all read videos by these functions.

```python
with open_video("clip.mp4") as video:
    print(video.info.duration_s, video.info.average_fps)
    clip = video.frames_at([0.0, 1.5, 3.0], size=224)
```

Times are in seconds on the clock of a player, which starts with the first picture or sound. Frames are uint8 RGB and
upright, with square pixels. If a file's header differs from its content, the content counts: see `VideoInfo` and the
errors below.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from mmllm.errors import InputError
from mmllm.tokens import VideoClip
from mmllm.video import _urls
from mmllm.video._animation import AnimationReader, animation_of
from mmllm.video._open_options import OpenOptions
from mmllm.video._picture_list import FrameFolder, PictureListReader, open_folder
from mmllm.video._reader import Size, Transform, VideoReader
from mmllm.video._sources import media_file
from mmllm.video.audio import Sound, SoundOptions
from mmllm.video.errors import (
    ClockBroken,
    FramesMissing,
    LimitExceeded,
    NoFrames,
    NoVideoStream,
    SoundDamaged,
    VideoDecodeError,
    VideoError,
    VideoOpenError,
    VideoShapeChanged,
    VideoTimeout,
    VideoTruncated,
)
from mmllm.video.frame_sink import FrameSink
from mmllm.video.info import VideoInfo
from mmllm.video.limits import UPLOAD_LIMITS, VideoLimits
from mmllm.video.names import existing
from mmllm.video.sampling import UNIFORM, FrameRule

__all__ = [
    "UPLOAD_LIMITS",
    "Backend",
    "ClockBroken",
    "FrameFolder",
    "FrameSink",
    "FramesMissing",
    "LimitExceeded",
    "NoFrames",
    "NoVideoStream",
    "Size",
    "Sound",
    "SoundDamaged",
    "SoundOptions",
    "Transform",
    "VideoDecodeError",
    "VideoError",
    "VideoInfo",
    "VideoLimits",
    "VideoOpenError",
    "VideoReader",
    "VideoShapeChanged",
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
    fps: float | None = None,
    limits: VideoLimits | None = None,
    stream: int | None = None,
    strict: bool = False,
    tone_map: bool = False,
    deinterlace: bool = True,
    inside: str | Path | None = None,
    allow_url: bool = False,
) -> VideoReader:
    """A reader of a video.

    Args:
        source: a path, bytes, a binary file object, a `FrameFolder` (or a folder's path and `fps`), or the frames
            themselves, uint8 (T H W 3), with `fps`.
        backend: "auto" is PyAV, which reads all allowed containers and includes FFmpeg. "decord" and "torchcodec"
            decode in a child process, which is killed after `limits.child_s` seconds.
        fps: frames a second, only for a folder of images and for arrays.
        limits: upper bounds of memory and time.
        stream: number of the video stream to read; by default the best stream that is not cover art.
        strict: whether damage is an error. If not, damaged packets are skipped and counted.
        tone_map: whether HDR pictures are converted to the ordinary range; without it they look washed out. Only for
            PyAV.
        deinterlace: whether frames that are marked as interlaced are de-interlaced. Other backends than PyAV refuse
            interlaced videos, unless this is False.
        inside: the folder in which a path must lie after links are resolved.
        allow_url: whether an http or https URL is downloaded; only from public hosts.

    Raises:
        VideoOpenError: if the source is missing, not a regular file or not a video.
        NoVideoStream: if the file has no video.
        NoFrames: if no frame can be decoded.
        LimitExceeded: if the video is too large or too long.
        InputError: if options do not fit together.

    Warns:
        VideoTruncated: if the file ends earlier than its header declares.
        VideoShapeChanged: when a frame of another shape than the first is read.
        ClockBroken: if its clock falls back or jumps.
        FramesMissing: if numbers are missing among the names of a folder's images.
    """
    if backend not in get_args(Backend):
        raise InputError(f"backend must be one of {', '.join(get_args(Backend))}, not {backend!r}")
    limits = limits or VideoLimits()
    pictures = _pictures(source, fps, limits, inside)
    if pictures is not None:
        return pictures
    if fps is not None:
        raise InputError(
            "fps is for folders of images and for arrays; a video file has its own times, so leave fps out"
        )
    name = None
    if allow_url and _urls.is_url(source):
        name, source = source, _urls.fetch(source, limits)
    options = OpenOptions(limits=limits, stream=stream, strict=strict, tone_map=tone_map, deinterlace=deinterlace)
    media = media_file(source, inside=inside, name=name)
    if animation := animation_of(media):
        if backend not in ("auto", "pyav"):
            raise InputError(f"{media.name}: backend {backend!r} does not read animated images; leave it out")
        return AnimationReader(media, animation, options)
    if backend in ("auto", "pyav"):
        from mmllm.video._pyav import PyAVReader

        return PyAVReader(media, options)
    from mmllm.video._other_backends import ChildReader

    if tone_map:
        raise InputError(f"tone_map works with backend 'pyav', not with {backend!r}")
    return ChildReader(media, options, backend)


def _pictures(source: Any, fps: float | None, limits: VideoLimits, inside: str | Path | None) -> VideoReader | None:
    """A reader of a folder of images or of arrays; None if the source is neither."""
    if fps is not None and isinstance(source, (str, Path)) and (existing(source) or Path(source)).is_dir():
        source = FrameFolder(path=source, fps=fps)
    if isinstance(source, FrameFolder):
        return open_folder(source, limits, inside=inside)
    if isinstance(source, (np.ndarray, list, tuple)):
        if fps is None:
            raise InputError("frames in memory have no times: give fps, their rate in frames a second")
        return PictureListReader(f"<{len(source)} arrays>", list(source), fps, limits, "arrays")
    return None


def sample_uniform(
    source: Any,
    frames: int,
    *,
    backend: Backend = "auto",
    fps: float | None = None,
    transform: Transform | None = None,
    size: Size | None = None,
    start_s: float | None = None,
    end_s: float | None = None,
    limits: VideoLimits | None = None,
    sink: FrameSink | None = None,
    rule: FrameRule = UNIFORM,
) -> VideoClip:
    """T frames spread evenly over a video or a part of it, by LITA's rule.

    Args:
        source: any source of `open_video`, or an open reader.
        frames: T. If the video has fewer frames, some are repeated; the clip's `valid` is False for repetitions.
        backend, fps, limits: as for `open_video`.
        transform: applied to each uint8 frame (H W 3) as it is decoded, so that memory stays bounded. The clip holds
            its results.
        size: resize while decoding: the shorter edge in pixels, or (height, width).
        start_s, end_s: the part of the video from which frames are taken, in seconds.
        sink: takes the frames as they are decoded, if it wants them; see `VideoReader.sample_uniform`.
        rule: another rule than LITA's.
    """
    options: dict[str, Any] = {"start_s": start_s, "end_s": end_s, "size": size, "transform": transform, "sink": sink}
    if isinstance(source, VideoReader):
        return source.sample_uniform(frames, **options, rule=rule)
    with open_video(source, backend, fps=fps, limits=limits) as video:
        return video.sample_uniform(frames, **options, rule=rule)


def probe(source: Any, *, limits: VideoLimits | None = None) -> VideoInfo:
    """A video's length, rate, size and coding, found by reading its packets and decoding one frame.

    Raises:
        VideoError: as `open_video` does.
    """
    with open_video(source, limits=limits) as video:
        return video.info
