"""What keeps the demo from giving away files, fetching addresses or filling the disk.

Everything that visitors upload and everything that is made for them lies in one private folder, which is swept while
the demo runs and removed when it ends. A guard in front of Gradio refuses any other file and the endpoints that the
demo does not use.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from starlette.formparsers import MultiPartException

from mmllm.app.limits import DemoLimits

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_API = "/gradio_api"
_UNUSED = (
    "/proxy=",
    "/process_recording",
    "/vibe-",
    "/undo-vibe",
    "/deep_link",
    "/run-history",
    "/runs",
    "/monitoring",
    "/component_server",
    "/custom_component",
    "/stream/",
    "/dev/",
    "/file/",
)
"""Beginnings of Gradio's paths that fetch, convert, record or report something, none of which the demo needs."""
_MESSAGE_BYTES = 1 << 20
"""Most bytes of a request that is no upload."""
_NOT_OURS = (403, "only uploaded files are read and served")
_SWEEP_S = 60.0


@contextlib.contextmanager
def private_folder(limits: DemoLimits) -> Iterator[Path]:
    """A new folder for uploads and made files, which Gradio is told to use; removed with all it holds at the end.

    Must be entered before Gradio's components are made.
    """
    folder = Path(tempfile.mkdtemp(prefix="mmllm-demo-"))
    told = {"GRADIO_TEMP_DIR": str(folder), "GRADIO_EXAMPLES_CACHE": str(folder), "GRADIO_ANALYTICS_ENABLED": "False"}
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    over = threading.Event()

    def keep_sweeping() -> None:
        while not over.wait(_SWEEP_S):
            sweep(folder, limits.upload_age_s)

    sweeper = threading.Thread(target=keep_sweeping, daemon=True, name="mmllm-demo-sweeper")
    sweeper.start()
    try:
        yield folder
    finally:
        over.set()
        sweeper.join()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
        shutil.rmtree(folder, ignore_errors=True)


def sweep(folder: Path, age_s: float) -> None:
    """Removes files that were put into a folder longer than `age_s` seconds ago, and what is then empty."""
    latest = time.time() - age_s
    for path in sorted(folder.rglob("*"), reverse=True):
        with contextlib.suppress(OSError):
            if path.lstat().st_ctime <= latest:
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def remove_upload(path: Path, folder: Path) -> None:
    """Removes one uploaded file, if it is one."""
    with contextlib.suppress(OSError):
        if path.resolve().is_relative_to(folder.resolve()):
            path.unlink()


class Guard:
    """ASGI middleware in front of Gradio.

    Args:
        app: what comes behind.
        folders: the only folders of which files are served or read; the first one takes uploads.
        limits: of uploads.
    """

    def __init__(self, app: Any, folders: Sequence[Path], limits: DemoLimits) -> None:
        self.app, self.limits = app, limits
        self.folders = [folder.resolve() for folder in folders]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers it with the reason why not."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        before, _, after = scope["path"].partition(_API)
        path = after or before
        uploads = path.rstrip("/") == "/upload"
        limited = _Limited(receive, self.limits.upload_mb * 1_000_000 + _MESSAGE_BYTES if uploads else _MESSAGE_BYTES)
        try:
            refused = self.refused(path)
            if refused is None and scope["method"] == "POST" and not uploads:
                body = await limited.whole()
                refused = self.refused_files(body)
                limited = _Limited(_again(body, receive), _MESSAGE_BYTES)
            if refused is None:
                await self.app(scope, limited, send)
            else:
                await _answer(send, *refused)
        except _TooLarge as problem:
            await _answer(send, 413, problem.message)

    def refused(self, path: str) -> tuple[int, str] | None:
        """Status and reason if a path is not to be answered."""
        if path.startswith(_UNUSED):
            return 404, "the demo has no such endpoint"
        if path.startswith("/file=") and not self._ours(path.removeprefix("/file=")):
            return _NOT_OURS
        if path.rstrip("/") == "/upload" and _bytes_in(self.folders[0]) > self.limits.all_uploads_mb * 1_000_000:
            return 503, "the server is full of uploads; they are removed after a while, try again later"
        return None

    def refused_files(self, body: bytes) -> tuple[int, str] | None:
        """Status and reason if a message names a file that was not uploaded, or an address to fetch one from."""
        try:
            message = json.loads(body)
        except (ValueError, RecursionError):
            return None  # Gradio says what it expects
        return None if all(map(self._ours, _named_files(message))) else _NOT_OURS

    def _ours(self, name: Any) -> bool:
        try:
            path = Path(name).resolve(strict=True)
        except (OSError, ValueError, TypeError, RuntimeError):
            return False
        return path.is_file() and any(path.is_relative_to(folder) for folder in self.folders)


class _TooLarge(MultiPartException):
    """Known to Gradio's reader of uploads, which then removes what it has written."""


class _Limited:
    """A request's body that ends with an error once it is too long."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self.receive, self.limit, self.read = receive, limit, 0

    async def __call__(self) -> MutableMapping[str, Any]:
        message = await self.receive()
        self.read += len(message.get("body", b""))
        if self.read > self.limit:
            raise _TooLarge(f"the request exceeds the maximum allowed size of {self.limit} bytes")
        return message

    async def whole(self) -> bytes:
        """The whole body; what there is of it if the visitor leaves."""
        parts, more = [], True
        while more:
            message = await self()
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """A body that was read already, then whatever else comes."""
    told = False

    async def replay() -> MutableMapping[str, Any]:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _named_files(message: Any) -> Iterator[Any]:
    """The path of every file in a message, as Gradio's clients write them."""
    pending = [message]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            if isinstance(value.get("meta"), dict) and "path" in value:
                yield value["path"]
            pending += value.values()
        elif isinstance(value, list):
            pending += value


async def _answer(send: Send, status: int, reason: str) -> None:
    body = reason.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.lstat().st_size
    return total
