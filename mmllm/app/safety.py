"""Protection of the server: the demo gives away no other files, fetches no addresses and does not fill the disk.

All uploads and exported files are in one private folder. Old files are removed while the demo runs, the whole folder
when it ends. A guard in front of Gradio refuses all other files, and the endpoints that the demo does not use.
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
"""Beginnings of Gradio's paths that fetch, convert, record or report something; the demo needs none of them."""
_MESSAGE_BYTES = 1 << 20
"""Most bytes of a request that is no upload, and of an upload beside its file."""
_FORBIDDEN_FILE = (403, "only uploaded files are read and served")
_SWEEP_S = 60.0
"""Seconds between two removals of old files."""


@contextlib.contextmanager
def private_folder(limits: DemoLimits) -> Iterator[Path]:
    """A new folder for uploads and exported files; it is removed with all its files at the end.

    Environment variables name it to Gradio, so enter this block before Gradio's components are made.
    """
    folder = Path(tempfile.mkdtemp(prefix="mmllm-demo-"))
    environment = {
        "GRADIO_TEMP_DIR": str(folder),
        "GRADIO_EXAMPLES_CACHE": str(folder),
        "GRADIO_ANALYTICS_ENABLED": "False",
    }
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    ended = threading.Event()

    def keep_sweeping() -> None:
        while not ended.wait(_SWEEP_S):
            sweep(folder, limits.upload_age_s)

    sweeper = threading.Thread(target=keep_sweeping, daemon=True, name="mmllm-demo-sweeper")
    sweeper.start()
    try:
        yield folder
    finally:
        ended.set()
        sweeper.join()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
        shutil.rmtree(folder, ignore_errors=True)


def sweep(folder: Path, age_s: float) -> None:
    """Removes files that came into a folder more than `age_s` seconds ago, then old folders that are empty."""
    latest = time.time() - age_s
    for path in sorted(folder.rglob("*"), reverse=True):  # files before their folder
        with contextlib.suppress(OSError):
            if path.lstat().st_ctime <= latest:
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def remove_upload(path: Path, folder: Path) -> None:
    """Removes a file if it is in the folder of uploads."""
    with contextlib.suppress(OSError):
        if path.resolve().is_relative_to(folder.resolve()):
            path.unlink()


class Guard:
    """ASGI middleware in front of Gradio.

    Args:
        app: the ASGI app behind the guard.
        folders: files in these folders may be served and read, no others; uploads go to the first folder.
        limits: limits of uploads.
    """

    def __init__(self, app: Any, folders: Sequence[Path], limits: DemoLimits) -> None:
        self.app, self.limits = app, limits
        self.folders = [folder.resolve() for folder in folders]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on to the app, or refuses it with the reason."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        before, _, after = scope["path"].partition(_API)
        path = after or before
        is_upload = path.rstrip("/") == "/upload"
        limit = self.limits.upload_mb * 1_000_000 + _MESSAGE_BYTES if is_upload else _MESSAGE_BYTES
        limited = _LimitedBody(receive, limit)
        try:
            refused = self.refused(path)
            if refused is None and scope["method"] == "POST" and not is_upload:
                # read the whole message, check the files that it names, then give the app the same message again
                body = await limited.whole()
                refused = self.refused_files(body)
                limited = _LimitedBody(_replayed(body, receive), _MESSAGE_BYTES)
            if refused is None:
                await self.app(scope, limited, send)
            else:
                await _answer(send, *refused)
        except _TooLarge as problem:
            await _answer(send, 413, problem.message)

    def refused(self, path: str) -> tuple[int, str] | None:
        """Status and reason if a path is refused; None if it is not."""
        if path.startswith(_UNUSED):
            return 404, "the demo has no such endpoint"
        if path.startswith("/file=") and not self._is_allowed(path.removeprefix("/file=")):
            return _FORBIDDEN_FILE
        if path.rstrip("/") == "/upload" and _bytes_in(self.folders[0]) > self.limits.all_uploads_mb * 1_000_000:
            return 503, "the server has no room for more uploads; old ones are removed after a while, try again later"
        return None

    def refused_files(self, body: bytes) -> tuple[int, str] | None:
        """Status and reason if a message names an address or a file outside the folders; None if it does not."""
        try:
            message = json.loads(body)
        except (ValueError, RecursionError):
            return None  # Gradio answers a message that is not JSON
        return None if all(map(self._is_allowed, _named_files(message))) else _FORBIDDEN_FILE

    def _is_allowed(self, name: Any) -> bool:
        """Whether a name is the path of an existing file in one of the folders."""
        try:
            path = Path(name).resolve(strict=True)
        except (OSError, ValueError, TypeError, RuntimeError):
            return False
        return path.is_file() and any(path.is_relative_to(folder) for folder in self.folders)


class _TooLarge(MultiPartException):
    """A request is too long. Gradio's reader of uploads catches the base class and removes the partial file."""


class _LimitedBody:
    """A request's body; reading it raises `_TooLarge` once it has more than `limit` bytes."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self.receive, self.limit, self.read = receive, limit, 0

    async def __call__(self) -> MutableMapping[str, Any]:
        message = await self.receive()
        self.read += len(message.get("body", b""))
        if self.read > self.limit:
            raise _TooLarge(f"the request exceeds the maximum allowed size of {self.limit} bytes")
        return message

    async def whole(self) -> bytes:
        """The whole body, or the part that was received if the visitor leaves."""
        parts, more = [], True
        while more:
            message = await self()
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body that was read already, and after it the messages of the given `receive`."""
    sent = False

    async def replay() -> MutableMapping[str, Any]:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _named_files(message: Any) -> Iterator[Any]:
    """The path of every file in a message, in the form that Gradio's clients use."""
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
    """Sends a plain text as the whole answer."""
    body = reason.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _bytes_in(folder: Path) -> int:
    """Bytes of all files in a folder; files that disappear meanwhile count as 0."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.lstat().st_size
    return total
