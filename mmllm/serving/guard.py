"""In front of the server's app: names, keys, lengths, room for uploads, and the end of the server.

Whatever is refused here is refused before its body is in memory.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

from mmllm.app.bodies import LimitedBody, Receive, Scope, Send, TooLarge, UploadBody, replayed
from mmllm.app.browser_rules import BrowserRules
from mmllm.app.uploads import Room, announced_length
from mmllm.serving.limits import ServeLimits
from mmllm.serving.metrics import Metrics
from mmllm.serving.refusals import Refused

log = logging.getLogger(__name__)

ENDPOINTS = ("/v1/chat/completions", "/v1/responses", "/v1/files", "/v1/models", "/health", "/metrics")
_OPEN = ("/health",)
"""Paths that need no key."""
_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))
_LEFT = 499
"""Status of a request whose client left before its answer began."""
_MULTIPART_BYTES = 1 << 20
"""Bytes of an upload's request beside its file."""


class ServeGuard:
    """ASGI middleware of the server.

    Args:
        app: the ASGI app behind it.
        limits: upper bounds.
        rules: which hosts and origins are served.
        room: for uploads.
        keys: API keys, of which a request needs one; none if the server is open.
        metrics: counts requests.
        ending: whether the server is about to end.
    """

    def __init__(
        self,
        app: Any,
        *,
        limits: ServeLimits,
        rules: BrowserRules,
        room: Room,
        keys: Sequence[str],
        metrics: Metrics,
        ending: Callable[[], bool],
    ) -> None:
        self.app, self.limits, self.rules, self.room = app, limits, rules, room
        self.keys = [key.encode() for key in keys]
        self.metrics, self.ending = metrics, ending

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on to the app, or refuses it with the reason."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer, began_s = _Answer(send), time.monotonic()
        try:
            await self._pass_on(scope, receive, answer)
        except TooLarge as problem:
            await answer.refuse(Refused(413, problem.message, "too_large"))
        except Refused as problem:
            await answer.refuse(problem)
        finally:
            path = scope["path"]
            endpoint = next((name for name in ENDPOINTS if path == name or path.startswith(name + "/")), "other")
            self.metrics.add("requests", endpoint=endpoint, code=str(answer.status or _LEFT))
            self.metrics.observe("request_seconds", time.monotonic() - began_s)

    async def _pass_on(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        names = [name.decode("latin-1").lower() for name, _ in scope["headers"]]
        headers = dict(zip(names, (value.decode("latin-1") for _, value in scope["headers"]), strict=True))
        self._check(scope["path"], scope["method"], headers, hosts=names.count("host"))
        if scope["method"] != "POST":
            await self.app(scope, LimitedBody(receive, _MULTIPART_BYTES), answer)
            return
        if self.ending():
            raise Refused(503, "the server ends: ask another one", "draining")
        if scope["path"].rstrip("/") == "/v1/files":
            await self._take_upload(scope, receive, answer, headers)
            return
        most = self.limits.body_bytes
        if announced_length(headers, 0) > most:
            raise Refused(413, f"a request may have {most} bytes; upload larger files to /v1/files", "too_large")
        body = await LimitedBody(receive, most).whole()
        await self.app(scope, replayed(body, receive), answer)

    async def _take_upload(self, scope: Scope, receive: Receive, answer: _Answer, headers: Mapping[str, str]) -> None:
        """Reserves the announced bytes and passes the upload on."""
        largest = self.limits.upload_mb * 1_000_000
        announced = announced_length(headers, largest)
        if announced > largest + _MULTIPART_BYTES:
            raise Refused(413, f"a file may have {self.limits.upload_mb} MB", "too_large")
        upload = await self.room.reserved(announced)
        if upload is None:
            raise Refused(503, "there is no room for more files: they are removed after a while", "no_room")
        try:
            await self.app(scope, UploadBody(receive, largest + _MULTIPART_BYTES, upload), answer)
        finally:
            self.room.release(upload)

    def _check(self, path: str, method: str, headers: Mapping[str, str], *, hosts: int) -> None:
        """Refuses a request by its headers.

        Raises:
            Refused: with the reason.
        """
        if hosts != 1:
            raise Refused(400, f"a request needs one Host header, not {hosts}", "bad_request")
        if (problem := self.rules.unknown_host(headers)) is not None:
            raise Refused(421, problem, "unknown_host")
        if (problem := self.rules.foreign_page(method, headers)) is not None:
            raise Refused(403, problem, "foreign_page")
        if self.keys and path not in _OPEN:
            scheme, _, words = headers.get("authorization", "").partition(" ")
            given = words.strip().encode() if scheme.lower() == "bearer" else b""
            if not sum(secrets.compare_digest(given, key) for key in self.keys):  # all are compared
                raise Refused(401, "the API key is missing or wrong", "invalid_api_key")


class _Answer:
    """Sends an answer, notes its status, and refuses in OpenAI's form."""

    def __init__(self, send: Send) -> None:
        self.send, self.status, self.begun = send, 0, False

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        """Sends a message of the app."""
        if message["type"] == "http.response.start":
            self.begun, self.status = True, message["status"]
            message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
        await self.send(message)

    async def refuse(self, problem: Refused) -> None:
        """Sends a refusal as the whole answer, unless an answer has begun."""
        if self.begun:
            log.warning("an answer was broken off: %s", problem.code)
            return
        body = json.dumps(problem.body).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body)), **problem.headers}
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self({"type": "http.response.start", "status": problem.status, "headers": raw})
        await self({"type": "http.response.body", "body": body})
