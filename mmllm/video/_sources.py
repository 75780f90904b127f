"""Sources that can be opened: a regular file, also inside a tar file, bytes, or a file object.

No library gets a name to interpret.
"""

from __future__ import annotations

import io
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from mmllm.errors import InputError
from mmllm.video._containers import HEAD_BYTES
from mmllm.video.errors import VideoOpenError
from mmllm.video.names import existing, is_address, nearest
from mmllm.video.tar_members import Member, member_of


@dataclass(frozen=True, kw_only=True)
class MediaFile:
    """A readable local file, or bytes in memory, with its first bytes."""

    name: str
    """The name in messages."""
    head: bytes
    length: int
    """In bytes."""
    path: str | None = None
    """Absolute, so that no part of it can be mistaken for a protocol. None for a stream."""
    file: BinaryIO | None = None
    """A seekable stream, if there is no path."""

    def stream(self) -> BinaryIO:
        """The stream at its beginning; only for a source without a path."""
        stream = cast(BinaryIO, self.file)
        stream.seek(0)
        return stream


def media_file(source: Any, *, inside: str | os.PathLike[str] | None = None, name: str | None = None) -> MediaFile:
    """The file of a path, of bytes or of a binary file object.

    Args:
        source: the path, bytes or file object.
        inside: the folder in which a path must lie after links are resolved.
        name: the name in messages of a source that is not a path.

    Raises:
        VideoOpenError: naming the source and why it cannot be read.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _from_stream(io.BytesIO(source), name or f"<{len(source)} bytes>")
    if isinstance(source, (str, os.PathLike)):
        return _from_path(os.fspath(source), inside)
    if hasattr(source, "read"):
        stream_name = getattr(source, "name", None)
        return _from_stream(
            _seekable(source), name or (stream_name if isinstance(stream_name, str) else "<file object>")
        )
    raise VideoOpenError(
        f"a video is a path, bytes, a binary file object, a FrameFolder or arrays, not {type(source).__name__}"
    )


def regular_file(path: str | os.PathLike[str], *, inside: str | os.PathLike[str] | None = None) -> Path:
    """The absolute path of a readable regular file; links are followed.

    Raises:
        VideoOpenError: if it is not a regular file, cannot be read, or lies outside of `inside`.
    """
    name = os.fspath(path)
    if "\0" in name:
        raise VideoOpenError(f"{name!r}: a file name cannot contain a zero byte")
    absolute = Path(os.path.abspath(existing(name) or name))
    if inside is not None and not absolute.resolve().is_relative_to(Path(inside).resolve()):
        raise VideoOpenError(f"{name}: outside of the only folder from which files may be opened")
    try:
        mode = absolute.stat().st_mode
    except OSError as problem:
        if is_address(name):
            raise VideoOpenError(
                f"{name}: an address, not a file; download it first",
                in_python="open_video opens addresses of public hosts with allow_url=True",
            ) from None
        hint = nearest(name) if inside is None and isinstance(problem, (FileNotFoundError, NotADirectoryError)) else ""
        raise VideoOpenError(f"{name}: {problem.strerror or problem}{hint}") from None
    if stat.S_ISDIR(mode):
        raise VideoOpenError(
            f"{name}: a directory, not a video; for a folder of numbered frames, give their rate (fps)",
            in_python="open_video(path, fps=5)",
        )
    if not stat.S_ISREG(mode):
        raise VideoOpenError(f"{name}: not a regular file (a pipe, socket or device)")
    return absolute


def _from_path(name: str | bytes, inside: str | os.PathLike[str] | None) -> MediaFile:
    name = os.fsdecode(name)
    if "\0" not in name and (member := _member(name, inside)) is not None:
        return _from_stream(cast(BinaryIO, member.open()), name)
    path = regular_file(name, inside=inside)
    try:
        with open(path, "rb") as file:
            head, length = file.read(HEAD_BYTES), os.fstat(file.fileno()).st_size
    except OSError as problem:
        raise VideoOpenError(f"{name}: {problem.strerror or problem}") from None
    if not head:
        raise VideoOpenError(f"{name}: not a video: the file is empty")
    return MediaFile(name=name, head=head, length=length, path=str(path))


def _member(name: str, inside: str | os.PathLike[str] | None) -> Member | None:
    """The file inside a tar file that a path names; None if it names another file."""
    try:
        member = member_of(name)
    except InputError as problem:
        raise VideoOpenError(str(problem)) from None
    if member is not None:
        regular_file(member.tar, inside=inside)
    return member


def _from_stream(stream: BinaryIO, name: str) -> MediaFile:
    stream.seek(0)
    head = stream.read(HEAD_BYTES)
    if not isinstance(head, bytes):
        raise VideoOpenError(f"{name}: the file is open in text mode; open it in binary mode")
    if not head:
        raise VideoOpenError(f"{name}: not a video: it is empty")
    return MediaFile(name=name, head=head, length=stream.seek(0, io.SEEK_END), file=stream)


def _seekable(stream: Any) -> BinaryIO:
    if hasattr(stream, "seekable") and stream.seekable():
        return stream
    data = stream.read()
    return io.BytesIO(data if isinstance(data, bytes) else data.encode())
