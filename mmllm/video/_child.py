"""A child process that is asked and answers over pipes, and is killed when it takes too long.

A request is one line of JSON. An answer is one line of JSON, then as many bytes as its `bytes` entry says. Nothing
that the child sends is ever unpickled, so a decoder taken over by a hostile file stays where it is.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any, cast

from mmllm.video.errors import VideoDecodeError, VideoTimeout

_LONGEST_LINE = 1 << 20


class Child:
    """A running child process; kill it, or use it in a `with` statement."""

    def __init__(self, command: Sequence[str], name: str) -> None:
        self._name = name
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env=_environment(),
        )
        self._out = cast(IO[bytes], self._process.stdout)
        os.set_blocking(self._out.fileno(), False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._out, selectors.EVENT_READ)
        self._read = bytearray()

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def send(self, request: Mapping[str, Any]) -> None:
        """Asks for something.

        Raises:
            VideoDecodeError: if the child has ended.
        """
        line = json.dumps(request).encode() + b"\n"
        try:
            cast(IO[bytes], self._process.stdin).write(line)
        except OSError:
            raise self._ended() from None

    def receive(self, until: float) -> tuple[dict[str, Any], bytearray]:
        """The next answer and the bytes that come with it.

        Args:
            until: `time.monotonic()` at which the child is killed.

        Raises:
            VideoTimeout: if that moment came; the child is gone.
            VideoDecodeError: if the child ended, or sent what is no answer.
        """
        while (end := self._read.find(b"\n")) < 0:
            if len(self._read) > _LONGEST_LINE:
                raise VideoDecodeError(f"{self._name}: sent what is no answer")
            self._fill(until)
        try:
            answer = json.loads(bytes(self._read[:end]))
            length = int(answer.get("bytes", 0))
        except (ValueError, AttributeError):
            raise VideoDecodeError(f"{self._name}: sent what is no answer") from None
        del self._read[: end + 1]
        while len(self._read) < length:
            self._fill(until)
        data = self._read[:length]
        del self._read[:length]
        return answer, data

    def kill(self) -> None:
        """Ends the child at once, whatever it is doing. Doing so twice is allowed."""
        self._process.kill()
        self._process.wait()
        self._selector.close()
        for pipe in (self._process.stdin, self._out):
            with contextlib.suppress(OSError):
                cast(IO[bytes], pipe).close()

    def _fill(self, until: float) -> None:
        left = until - time.monotonic()
        if left <= 0 or not self._selector.select(left):
            self.kill()
            raise VideoTimeout(f"{self._name}: killed, because it took too long (raise VideoLimits.child_s)")
        block = self._out.read(1 << 20)
        if not block:
            raise self._ended()
        self._read += block

    def _ended(self) -> VideoDecodeError:
        code = self._process.wait()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return VideoDecodeError(f"{self._name}: the decoder's process ended with {how}")


def end_with_parent() -> None:
    """For a child: asks the system to kill this process when the one that started it dies. Linux only.

    Elsewhere the child ends when it next looks for a request.
    """
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    parent = os.getppid()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it died before the call
        os._exit(1)


def _environment() -> dict[str, str]:
    """This process's variables, with its import path, and one thread for numeric libraries."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
