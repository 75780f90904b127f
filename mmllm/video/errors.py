"""What can go wrong with a video, as exceptions that name the file, the cause and what to do."""

from __future__ import annotations

from mmllm.errors import InputError


class VideoError(InputError):
    """A video cannot be read as asked."""


class VideoOpenError(VideoError):
    """The source is missing, not a regular file, not a video, or of a container that is not allowed."""


class NoVideoStream(VideoError):
    """The file is valid media, but has no video: the message says which streams it has."""


class NoFrames(VideoError):
    """The file says it has video, but not one frame of it can be decoded."""


class LimitExceeded(VideoError):
    """The video is larger or longer than the limits allow; nothing of that size was allocated."""


class VideoTimeout(VideoError):
    """Reading took longer than its deadline."""


class VideoDecodeError(VideoError):
    """Wanted frames cannot be decoded, or a backend failed while decoding."""


class VideoTruncated(UserWarning):
    """The file ends before what its header declares; the frames up to the cut are there."""
