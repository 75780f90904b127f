"""What can be opened: a regular file, bytes, or a file object; never a name that a library might interpret."""

from __future__ import annotations

import io
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from mmllm.video._containers import HEAD_BYTES
from mmllm.video.errors import VideoOpenError


@dataclass(frozen=True, kw_only=True)
class MediaFile:
    """A local file or bytes in memory, known to be readable, with its first bytes."""

    name: str
    """For messages."""
    head: bytes
    length: int
    """In bytes."""
    path: str | None = None
    """Absolute, so that no part of it can be taken for a protocol."""
    file: BinaryIO | None = None
    """A seekable stream, where there is no path."""

    def stream(self) -> BinaryIO:
        """The stream at its beginning, where there is no path."""
        stream = cast(BinaryIO, self.file)
        stream.seek(0)
        return stream


def media_file(source: Any, *, inside: str | os.PathLike[str] | None = None, name: str | None = None) -> MediaFile:
    """The file that a path, bytes or a binary file object stand for.

    Args:
        source: what the user gave.
        inside: a folder that a path must not lead out of, links resolved.
        name: what messages call a source that is no path.

    Raises:
        VideoOpenError: naming the source and why it cannot be read.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _from_stream(io.BytesIO(source), name or f"<{len(source)} bytes>")
    if isinstance(source, (str, os.PathLike)):
        return _from_path(os.fspath(source), inside)
    if hasattr(source, "read"):
        own = getattr(source, "name", None)
        return _from_stream(_seekable(source), name or (own if isinstance(own, str) else "<file object>"))
    raise VideoOpenError(
        f"a video is a path, bytes, a binary file object, a FrameFolder or arrays, not {type(source).__name__}"
    )


def regular_file(path: str | os.PathLike[str], *, inside: str | os.PathLike[str] | None = None) -> Path:
    """The absolute path of a readable regular file; links are followed.

    Raises:
        VideoOpenError: for anything else, and for files outside of `inside`.
    """
    name = os.fspath(path)
    if "\0" in name:
        raise VideoOpenError(f"{name!r}: a file name cannot hold a zero byte")
    absolute = Path(os.path.abspath(name))
    if inside is not None and not absolute.resolve().is_relative_to(Path(inside).resolve()):
        raise VideoOpenError(f"{name}: outside of the folder that files may come from")
    try:
        mode = absolute.stat().st_mode
    except OSError as problem:
        hint = "; addresses are opened only with allow_url=True" if "://" in name else ""
        raise VideoOpenError(f"{name}: {problem.strerror or problem}{hint}") from None
    if stat.S_ISDIR(mode):
        raise VideoOpenError(f"{name}: a directory, not a video; a folder of numbered frames needs their rate: "
                             "FrameFolder(path, fps=...)")  # fmt: skip
    if not stat.S_ISREG(mode):
        raise VideoOpenError(f"{name}: not a regular file (a pipe, socket or device)")
    return absolute


def _from_path(name: str | bytes, inside: str | os.PathLike[str] | None) -> MediaFile:
    name = os.fsdecode(name)
    path = regular_file(name, inside=inside)
    try:
        with open(path, "rb") as file:
            head, length = file.read(HEAD_BYTES), os.fstat(file.fileno()).st_size
    except OSError as problem:
        raise VideoOpenError(f"{name}: {problem.strerror or problem}") from None
    if not head:
        raise VideoOpenError(f"{name}: not a video: the file is empty")
    return MediaFile(name=name, head=head, length=length, path=str(path))


def _from_stream(stream: BinaryIO, name: str) -> MediaFile:
    stream.seek(0)
    head = stream.read(HEAD_BYTES)
    if not isinstance(head, bytes):
        raise VideoOpenError(f"{name}: opened as text; a video must be opened in binary mode")
    if not head:
        raise VideoOpenError(f"{name}: not a video: it is empty")
    return MediaFile(name=name, head=head, length=stream.seek(0, io.SEEK_END), file=stream)


def _seekable(stream: Any) -> BinaryIO:
    if hasattr(stream, "seekable") and stream.seekable():
        return stream
    data = stream.read()
    return io.BytesIO(data if isinstance(data, bytes) else data.encode())
