"""A child process that answers requests over pipes, and is killed when it takes too long.

A request is one line of JSON. An answer is one line of JSON, then as many bytes as its `bytes` entry says. What the
child sends is never unpickled, so a hostile file that takes over the decoder cannot run code in this process.
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

from mmllm.runtime.processes import end_with_parent
from mmllm.video.errors import VideoDecodeError, VideoTimeout

__all__ = ["Child", "end_with_parent"]

_MAX_LINE_BYTES = 1 << 20


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
        self._output = cast(IO[bytes], self._process.stdout)
        os.set_blocking(self._output.fileno(), False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._output, selectors.EVENT_READ)
        self._received = bytearray()

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def send(self, request: Mapping[str, Any]) -> None:
        """Sends a request.

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
            VideoTimeout: if no answer came until then; the child has been killed.
            VideoDecodeError: if the child ended, or sent something that is not an answer.
        """
        while (end := self._received.find(b"\n")) < 0:
            if len(self._received) > _MAX_LINE_BYTES:
                raise self._not_an_answer()
            self._fill(until)
        try:
            answer = json.loads(bytes(self._received[:end]))
            length = int(answer.get("bytes", 0))
        except (ValueError, AttributeError):
            raise self._not_an_answer() from None
        del self._received[: end + 1]
        while len(self._received) < length:
            self._fill(until)
        data = self._received[:length]
        del self._received[:length]
        return answer, data

    def kill(self) -> None:
        """Ends the child at once, whatever it is doing. A second call does nothing."""
        self._process.kill()
        self._process.wait()
        self._selector.close()
        for pipe in (self._process.stdin, self._output):
            with contextlib.suppress(OSError):
                cast(IO[bytes], pipe).close()

    def _fill(self, until: float) -> None:
        remaining_s = until - time.monotonic()
        if remaining_s <= 0 or not self._selector.select(remaining_s):
            self.kill()
            raise VideoTimeout(f"{self._name}: killed, because it took too long", in_python="raise VideoLimits.child_s")
        block = self._output.read(1 << 20)
        if not block:
            raise self._ended()
        self._received += block

    def _ended(self) -> VideoDecodeError:
        code = self._process.wait()
        cause = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return VideoDecodeError(f"{self._name}: the decoder's process ended with {cause}")

    def _not_an_answer(self) -> VideoDecodeError:
        return VideoDecodeError(f"{self._name}: the decoder's process sent data that is not an answer")


def _environment() -> dict[str, str]:
    """The environment variables of this process, with its import path and one thread for numeric libraries."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
