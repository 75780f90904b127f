"""What a file claims before FFmpeg opens it: tracks, samples, sizes of pictures. Claims beyond the limits are refused.

FFmpeg allocates memory by such numbers, and a few bytes can claim gigabytes.
"""

from __future__ import annotations

import re
import struct
from contextlib import AbstractContextManager, nullcontext
from typing import BinaryIO

from mmllm.video import _matroska_claims, _mp4_claims, _mxf_claims, _transport_claims
from mmllm.video._parameter_sets import SequenceParameters, sequence_parameters
from mmllm.video._sources import MediaFile
from mmllm.video.errors import LimitExceeded, VideoOpenError
from mmllm.video.limits import VideoLimits

_HEADER_BYTES = 1 << 18
_START_CODE = b"\x00\x00\x01"
_BLOCK_BYTES = 4 << 20
_UNIT_BYTES = 32 << 20
"""More bytes than any unit of a video without container has: an 8K frame with hardly any compression."""


def check_claims(media: MediaFile, container: str, limits: VideoLimits) -> tuple[int, str]:
    """Refuses a file whose header claims more than the limits allow.

    Returns:
        The number of video tracks by the header, 0 if that is not known before opening; and what is wrong with the
        file, in words, if FFmpeg cannot open it.

    Raises:
        LimitExceeded: naming the claim.
        VideoOpenError: if the file lacks its index or its beginning.
    """
    with _opened(media) as stream:
        if container == "mov":
            return _check_mp4(media, _mp4_claims.claims_of(stream, media.length), limits)
        if container == "matroska":
            claims = _matroska_claims.claims_of(stream, media.length)
            return _check_tracks(media.name, claims.tracks, claims.pictures, limits), ""
        if container in ("h264", "hevc", "mpegvideo"):
            _check_start_codes(media, stream, container, limits)
        elif container == "mpegts":
            stream.seek(0)
            streams, video_streams = _transport_claims.streams_of(stream.read(_HEADER_BYTES))
            limits.check_streams(media.name, streams)
            return video_streams, ""
        elif container == "mxf":
            limits.check_frames(media.name, _mxf_claims.frames_of(stream, media.length))
        elif container == "avi":
            stream.seek(0)
            header = stream.read(min(_HEADER_BYTES, 20 + int.from_bytes(media.head[16:20], "little")))
            limits.check_streams(media.name, len(re.findall(rb"LIST.{4}strl", header, re.DOTALL)))
    if (size := _size_by_head(container, media.head)) is not None:
        limits.check_size(media.name, *size)
    return 0, ""


def _opened(media: MediaFile) -> AbstractContextManager[BinaryIO]:
    return nullcontext(media.stream()) if media.path is None else open(media.path, "rb")


def _check_mp4(media: MediaFile, claims: _mp4_claims.Claims, limits: VideoLimits) -> tuple[int, str]:
    name = media.name
    most = 4 * limits.frames
    if claims.boxes > _mp4_claims.MOST_BOXES:
        raise LimitExceeded(f"{name}: more than {_mp4_claims.MOST_BOXES} boxes")
    if claims.frames > limits.frames or claims.entries > most:
        claimed = f"{claims.frames} frames" if claims.frames > limits.frames else f"{claims.entries} samples"
        raise LimitExceeded(
            f"{name}: its index claims {claimed}, in a file of {media.length} bytes; "
            f"allowed are {limits.frames} frames and {most} samples of all tracks",
            in_python="raise VideoLimits.frames to read it anyway",
        )
    if b"moov" not in claims.kinds:
        _explain_missing_index(name, claims)
    if claims.fragmented and not claims.frames and b"moof" not in claims.kinds:
        raise VideoOpenError(
            f"{name}: not a video by itself: the init part of a stream without its segments: "
            "join them, by cat INIT.mp4 SEGMENT.m4s ... > OUT.mp4"
        )
    if claims.encrypted:
        raise VideoOpenError(f"{name}: its pictures are encrypted (DRM), which mmllm cannot decode")
    problem = "its index (moov) is cut short, the download or copy was not finished" if claims.cut == b"moov" else ""
    return _check_tracks(name, claims.tracks, claims.pictures, limits), problem


def _explain_missing_index(name: str, claims: _mp4_claims.Claims) -> None:
    if claims.kinds & {b"free", b"hoov", b"skip"} and claims.tracks:
        return  # FFmpeg finds an index inside a free box
    if b"moof" in claims.kinds or claims.kinds & {b"styp", b"sidx"}:
        raise VideoOpenError(
            f"{name}: not a video by itself: a segment of a stream without its init part (moov): "
            "join them, by cat INIT.mp4 SEGMENT.m4s ... > OUT.mp4"
        )
    if b"meta" in claims.kinds:
        raise VideoOpenError(f"{name}: not a video: an image of the HEIF family (HEIC, AVIF); give it as an image")
    raise VideoOpenError(
        f"{name}: not a readable video: the index (moov) is missing, the recording or download was not finished: "
        "get the whole file, or repair it with a tool such as untrunc"
    )


def _check_tracks(name: str, tracks: int, pictures: list[tuple[int, int]], limits: VideoLimits) -> int:
    limits.check_streams(name, tracks)
    for width, height in pictures:
        limits.check_size(name, width, height)
    return len(pictures)


def check_parameters(name: str, parameters: SequenceParameters, limits: VideoLimits) -> None:
    """Refuses pictures that are too large, and decoders that would have to keep too many of them."""
    limits.check_size(name, parameters.width, parameters.height)
    limits.check_decoder(name, parameters.width, parameters.height, parameters.references, parameters.depth)


def _check_start_codes(media: MediaFile, stream: BinaryIO, container: str, limits: VideoLimits) -> None:
    """Refuses a stream without container that has no start code for a long stretch: FFmpeg would keep all of it.

    Of each block of the file, only the last start code is searched for.
    """
    parameters = sequence_parameters(container, media.head)
    if parameters is not None:
        check_parameters(media.name, parameters, limits)
    latest, most = 0, min(limits.packet_bytes, _UNIT_BYTES)
    for position in range(0, media.length, _BLOCK_BYTES):
        stream.seek(position)
        last = stream.read(_BLOCK_BYTES + len(_START_CODE) - 1).rfind(_START_CODE)
        latest = position + last if last >= 0 else latest
        if min(position + _BLOCK_BYTES, media.length) - latest > most:
            raise LimitExceeded(
                f"{media.name}: more than {most >> 20} MiB without a start code, from byte {latest} on: "
                f"that is no {container}; cut it there, or give another copy"
            )


def _size_by_head(container: str, head: bytes) -> tuple[int, int] | None:
    """Width and height of the pictures by the first bytes, for containers that have them there."""
    if container == "gif" and len(head) >= 10:
        width, height = struct.unpack("<HH", head[6:10])
    elif container == "ivf" and len(head) >= 16:
        width, height = struct.unpack("<HH", head[12:16])
    elif container == "avi" and len(head) >= 72:
        width, height = map(abs, struct.unpack("<ii", head[64:72]))  # a negative height means rows from below
    elif container == "yuv4mpegpipe":
        sizes = dict(re.findall(rb" ([WH])(\d{1,9})", head.split(b"\n")[0]))
        width, height = int(sizes.get(b"W", 0)), int(sizes.get(b"H", 0))
    else:
        return None
    return width, height
