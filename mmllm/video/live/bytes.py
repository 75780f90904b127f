"""Bytes of a stream as they come: of a file that grows, of a named pipe, of the standard input."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

_POLL_S = 0.05
Stopped = Callable[[], bool]


class ByteStream(Protocol):
    """What a container is read from."""

    resumes: bool
    """Whether another container may follow when this one ends."""

    def read(self, size: int) -> bytes:
        """At most so many bytes; none at the end."""

    def close(self) -> None:
        """Closes the source."""


class GrowingFile:
    """A file that another program writes to. Its end is reached when it has not grown for `idle_s` seconds.

    Args:
        path: the file.
        idle_s: 0 to read only what is there.
        stopped: asked while waiting; True ends the file.
    """

    resumes = False

    def __init__(self, path: Path, idle_s: float, stopped: Stopped) -> None:
        self._file = path.open("rb")
        self._idle_s, self._stopped, self._over = idle_s, stopped, False
        self.seek, self.tell = self._file.seek, self._file.tell

    def read(self, size: int) -> bytes:
        """At most so many bytes; none at the end."""
        until = time.monotonic() + (0.0 if self._over else self._idle_s)
        while not (data := self._file.read(size)) and time.monotonic() < until and not self._stopped():
            time.sleep(_POLL_S)
        self._over = not data  # FFmpeg asks again at the end
        return data

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class Pipe:
    """A named pipe, or the standard input.

    A named pipe goes on when another program opens it for writing within `idle_s` seconds after the last one closed it.

    Args:
        path: the pipe; None for the standard input.
        idle_s: how long to wait for bytes and for a writer.
        stopped: asked while waiting; True ends the pipe.
    """

    def __init__(self, path: Path | None, idle_s: float, stopped: Stopped) -> None:
        self.resumes = path is not None
        self._descriptor = 0 if path is None else os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        self._idle_s, self._stopped = idle_s, stopped
        self._is_open = False

    def read(self, size: int) -> bytes:
        """At most so many bytes; none when the writer has closed the pipe, or nothing has come for too long."""
        until = time.monotonic() + self._idle_s
        while not self._stopped():
            if os.name == "nt":  # where pipes cannot be waited for
                return os.read(self._descriptor, size)
            if select.select([self._descriptor], [], [], _POLL_S)[0]:
                data = os.read(self._descriptor, size)
                if data or self._is_open or not self.resumes:
                    self._is_open = bool(data)
                    return data
                time.sleep(_POLL_S)  # nobody writes to it yet
            if time.monotonic() > until:
                return b""
        return b""

    def close(self) -> None:
        """Closes a named pipe; the standard input stays open."""
        if self.resumes:
            os.close(self._descriptor)
