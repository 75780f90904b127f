"""Protection of the server: the demo gives away no other files, fetches no addresses and does not fill the disk.

A guard in front of Gradio refuses what the demo does not need: other files, unused endpoints, pages of other sites,
uploads for which there is no room, and messages that fit no endpoint.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from mmllm.app.bodies import LimitedBody, Receive, Scope, Send, TooLarge, UploadBody, replayed
from mmllm.app.browser_rules import ANSWER_HEADERS, BrowserRules
from mmllm.app.calls import Calls
from mmllm.app.limits import DemoLimits
from mmllm.app.uploads import Room, announced_length

log = logging.getLogger(__name__)

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
_NO_ROOM = (503, "the server has no room for more uploads; old ones are removed after a while, try again later")


class Guard:
    """ASGI middleware in front of Gradio.

    Args:
        app: the ASGI app behind the guard.
        folders: files in these folders may be served and read, no others; uploads go to the first folder.
        limits: limits of uploads.
        rules: which hosts and origins are served.
        calls: the endpoints and their inputs; None to leave the check of messages to the app.
    """

    def __init__(
        self,
        app: Any,
        folders: Sequence[Path],
        limits: DemoLimits,
        rules: BrowserRules | None = None,
        calls: Calls | None = None,
    ) -> None:
        self.app, self.limits = app, limits
        self.folders = [folder.resolve() for folder in folders]
        self.rules, self.calls = rules or BrowserRules(), calls
        self.room = Room(self.folders[0], limits.all_uploads_mb * 1_000_000)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on to the app, or refuses it with the reason."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # the demo has none
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        before, _, after = scope["path"].partition(_API)
        path = after or before
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope.get("headers", ())}
        answer = _Answer(send, f"{scope['method']} {path[:80]!r}")
        try:
            refused = self.rules.refused(scope["method"], headers) or self.refused(path)
            if refused is not None:
                await answer.refuse(*refused)
            elif path.rstrip("/") == "/upload":
                await self._take_upload(scope, receive, answer, headers)
            else:
                await self._pass_on(scope, receive, answer, path)
        except TooLarge as problem:
            await answer.refuse(413, problem.message)
        except Exception as problem:  # Gradio's own errors have traces of many lines
            text = " ".join(str(problem).split())
            log.warning("%s failed: %s: %.200s", answer.request, type(problem).__name__, text)
            await answer.end(400 if scope["method"] == "POST" else 500)

    async def _take_upload(self, scope: Scope, receive: Receive, answer: _Answer, headers: dict[str, str]) -> None:
        """Reserves the announced bytes and passes the upload on; all its traces go if the visitor leaves."""
        most = self.limits.upload_mb * 1_000_000 + _MESSAGE_BYTES
        announced = announced_length(headers, self.limits.upload_mb * 1_000_000)
        if announced > most:
            await answer.refuse(413, f"the request exceeds the maximum allowed size of {most} bytes")
            return
        upload = await self.room.reserved(announced)
        if upload is None:
            await answer.refuse(*_NO_ROOM)
            return
        try:
            await self.app(scope, UploadBody(receive, most, upload), answer)
        finally:
            self.room.release(upload)

    async def _pass_on(self, scope: Scope, receive: Receive, answer: _Answer, path: str) -> None:
        """Passes on a request that is no upload. A message is read whole and checked first."""
        limited = LimitedBody(receive, _MESSAGE_BYTES)
        if scope["method"] == "POST":
            body = await limited.whole()
            if (refused := self.refused_message(path, body)) is not None:
                log.warning("refused %s: %s", answer.request, refused[1])
                await answer.refuse(*refused)
                return
            limited = LimitedBody(replayed(body, receive), _MESSAGE_BYTES)
        await self.app(scope, limited, answer)

    def refused(self, path: str) -> tuple[int, str] | None:
        """Status and reason if a path is refused; None if it is not."""
        if path.startswith(_UNUSED):
            return 404, "the demo has no such endpoint"
        if path.startswith("/file=") and not self._is_allowed(path.removeprefix("/file=")):
            return _FORBIDDEN_FILE
        return None

    def refused_message(self, path: str, body: bytes) -> tuple[int, str] | None:
        """Status and reason if a message fits no endpoint, or names an address or a file outside the folders."""
        if not body:
            return None
        try:
            message = json.loads(body)
        except (ValueError, RecursionError):
            return 400, "a message must be JSON"
        if not all(map(self._is_allowed, _named_files(message))):
            return _FORBIDDEN_FILE
        problem = None if self.calls is None else self.calls.malformed(path, message)
        return None if problem is None else (400, problem)

    def _is_allowed(self, name: Any) -> bool:
        """Whether a name is the path of an existing file in one of the folders."""
        try:
            path = Path(name).resolve(strict=True)
        except (OSError, ValueError, TypeError, RuntimeError):
            return False
        return path.is_file() and any(path.is_relative_to(folder) for folder in self.folders)


class _Answer:
    """Sends an answer with the headers of every answer. Status 422, of a message that fits no endpoint, becomes 400."""

    def __init__(self, send: Send, request: str) -> None:
        self.send, self.request = send, request
        self.begun = self.ended = False

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            own = {name for name, _ in message.get("headers", ())}
            more = [
                (name.encode(), value.encode()) for name, value in ANSWER_HEADERS.items() if name.encode() not in own
            ]
            status = message["status"]
            if status == 422:
                status = 400
                log.warning("refused %s: it does not fit this endpoint", self.request)
            message = {**message, "status": status, "headers": [*message.get("headers", ()), *more]}
        elif message["type"] == "http.response.body":
            self.ended = not message.get("more_body", False)
        await self.send(message)

    async def refuse(self, status: int, reason: str) -> None:
        """Sends a plain text as the whole answer, unless an answer has begun."""
        if self.begun:
            await self.end(status)
            return
        body = reason.encode()
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
        await self({"type": "http.response.start", "status": status, "headers": headers})
        await self({"type": "http.response.body", "body": body})

    async def end(self, status: int) -> None:
        """Ends an answer that has begun, or sends the status alone."""
        if not self.begun:
            await self.refuse(status, "this request cannot be answered")
        elif not self.ended:
            await self({"type": "http.response.body", "body": b"", "more_body": False})


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
