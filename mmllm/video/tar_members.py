"""Files inside a tar file: `clips-000000.tar/KEY.mp4` is read where it lies, nothing is unpacked.

Only plain tar files (not compressed ones) and their regular files are read. They may lie in folders of the tar file:
`clips.tar/raw/a.mp4`. `./a.mp4` and `/a.mp4`, as archivers write them, are `a.mp4`.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from mmllm.errors import InputError

SUFFIX = ".tar"
_END = bytes(2 * tarfile.BLOCKSIZE)
"""With what every whole tar file ends."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """A file inside a tar file."""

    tar: Path
    name: str
    """As a path below the tar file, with / between folders."""
    offset: int
    """Where its first byte lies in the tar file."""
    size: int
    """In bytes."""

    def open(self) -> io.BufferedReader:
        """The file, open for reading from its beginning."""
        return io.BufferedReader(_Window(self))

    def read(self) -> bytes:
        """All of its bytes."""
        with self.open() as file:
            return file.read()


class _Window(io.RawIOBase):
    """The bytes of a member, as a seekable file of its own."""

    def __init__(self, member: Member) -> None:
        super().__init__()
        self._member, self._place = member, 0
        self._file = open(member.tar, "rb", buffering=0)  # noqa: SIM115 - closed with the window

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Moves to a place, counted from the start, the current place or the end of the member."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._member.size}[whence]
        self._place = max(0, start + offset)
        return self._place

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fills the buffer with what follows; returns the number of bytes, 0 at the end of the member."""
        count = max(0, min(len(buffer), self._member.size - self._place))
        self._file.seek(self._member.offset + self._place)
        read = self._file.readinto(memoryview(buffer)[:count]) or 0
        self._place += read
        return read

    def close(self) -> None:
        """Closes the tar file."""
        self._file.close()
        super().close()


def member_of(path: str | os.PathLike[str]) -> Member | None:
    """The file that a path names inside a tar file; None if the path leads into no tar file.

    Raises:
        InputError: if the tar file is damaged, or has no such file.
    """
    whole = Path(os.fspath(path))
    tar = tar_of(whole)
    if tar is None:
        return None
    members = members_of(tar)
    name = whole.relative_to(tar).as_posix()
    if name not in members:
        raise InputError(f"{whole}: there is no {name} in {tar.name}, which has {len(members)} files")
    return members[name]


def members_of(tar: Path) -> Mapping[str, Member]:
    """Name -> file of a tar file, in its order. Headers are read once for each state of the tar file.

    Raises:
        InputError: if it cannot be read, is damaged or cut off, has a name twice or one that leads out of it.
    """
    try:
        status = tar.stat()
        return _members(tar, status.st_size, status.st_mtime_ns)
    except OSError as problem:
        raise InputError(f"{tar}: cannot be read: {problem.strerror or problem}") from None


@lru_cache(maxsize=1024)
def _members(tar: Path, size: int, changed: int) -> Mapping[str, Member]:
    """See `members_of`.

    Args:
        tar: the file.
        size: its bytes.
        changed: its modification time; another one makes the cache forget.
    """
    del changed
    with open(tar, "rb") as file:
        file.seek(max(0, size - len(_END)))
        if file.read() != _END:
            raise InputError(f"{tar}: this is no whole tar file: it does not end as one; it may be cut off")
    members: dict[str, Member] = {}
    try:
        with tarfile.open(tar, "r:") as archive:
            for info in archive:
                if not info.isfile():
                    continue
                name = _below(tar, info.name)
                if name in members:
                    raise InputError(f"{tar}: the name {name} occurs twice in it")
                members[name] = Member(tar=tar, name=name, offset=info.offset_data, size=info.size)
    except tarfile.TarError as problem:
        raise InputError(f"{tar}: this is no whole tar file: {problem}") from None
    return members


def _below(tar: Path, name: str) -> str:
    """The name of a member as a path below its tar file.

    Raises:
        InputError: if it leads out of the tar file.
    """
    parts = [part for part in PurePosixPath(name).parts if part.strip("/")]
    if ".." in parts or not parts:
        raise InputError(f"{tar}: the name {name!r} leads out of it")
    return "/".join(parts)


def status_of(path: Path) -> tuple[int, int]:
    """Bytes and time of the last change (nanoseconds) of a file, which may lie inside a tar file.

    Raises:
        InputError: if it cannot be accessed.
    """
    try:
        if (member := member_of(path)) is not None:
            return member.size, member.tar.stat().st_mtime_ns
        status = path.stat()
    except OSError as problem:
        raise InputError(f"{path}: {problem.strerror}") from None
    return status.st_size, status.st_mtime_ns


def tar_of(path: Path) -> Path | None:
    """The tar file that a path leads into; None if it leads into none."""
    return next((parent for parent in path.parents if parent.suffix == SUFFIX and parent.is_file()), None)
