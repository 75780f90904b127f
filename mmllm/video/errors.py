"""Errors of videos. Their messages name the file, the cause and what to do."""

from __future__ import annotations

from mmllm.errors import InputError


class VideoError(InputError):
    """A video cannot be read as requested.

    Args:
        message: what is wrong and what to do. It holds for the command line, too.
        in_python: what a program can do in addition. It is a note of the error, which a traceback shows.
    """

    def __init__(self, message: str, *, in_python: str = "") -> None:
        super().__init__(message)
        if in_python:
            self.add_note(in_python)


class VideoOpenError(VideoError):
    """The source is missing, is not a regular file, is not a video, or its container is not allowed."""


class NoVideoStream(VideoError):
    """The file is valid media without video. The message lists its streams."""


class NoFrames(VideoError):
    """The file declares video, but none of its frames can be decoded."""


class LimitExceeded(VideoError):
    """The video is larger or longer than the limits allow. No memory of that size was allocated."""


class VideoTimeout(VideoError):
    """Reading took longer than its deadline."""


class VideoDecodeError(VideoError):
    """Requested frames cannot be decoded, or a backend failed."""


class VideoTruncated(UserWarning):
    """The file ends earlier than its header declares. The frames before the cut are used."""


class SoundDamaged(UserWarning):
    """A part of a video's sound cannot be decoded. There is silence in its place; the pictures are used as they are."""


class VideoShapeChanged(UserWarning):
    """Frames in the middle have another shape than the first. They are fitted into its shape, with black bars."""


class ClockBroken(UserWarning):
    """The file's clock falls back or jumps, as in joined recordings. From there on, times are estimated."""


class FramesMissing(UserWarning):
    """Numbers are missing among the names of a folder's frames. Times follow the numbers."""
