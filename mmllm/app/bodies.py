"""Bodies of requests that are read with limits: of bytes, and of the time in which nothing comes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.formparsers import MultiPartException

from mmllm.app.uploads import STALL_S, Upload

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class TooLarge(MultiPartException):
    """A request is too long. Readers of uploads catch the base class and remove the partial file."""


class LimitedBody:
    """A request's body; reading it raises `TooLarge` once it has more than `limit` bytes."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self.receive, self.limit, self.read = receive, limit, 0

    async def __call__(self) -> MutableMapping[str, Any]:
        """The next message of the body."""
        message = await self.receive()
        self.read += len(message.get("body", b""))
        if self.read > self.limit:
            raise TooLarge(f"the request exceeds the maximum allowed size of {self.limit} bytes")
        return message

    async def whole(self) -> bytes:
        """The whole body, or the part that was received if the visitor leaves."""
        parts, more = [], True
        while more:
            message = await self()
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        return b"".join(parts)


class Gone(MultiPartException):
    """The visitor has left, or has to give way. The reader of uploads then removes the partial file."""


class UploadBody(LimitedBody):
    """The body of an upload; reading it raises `Gone` once the visitor leaves or sends nothing."""

    def __init__(self, receive: Receive, limit: int, upload: Upload) -> None:
        super().__init__(receive, limit)
        self.upload = upload

    async def __call__(self) -> MutableMapping[str, Any]:
        """The next message of the body; the upload counts what came."""
        arriving = asyncio.ensure_future(super().__call__())
        leaving = asyncio.ensure_future(self.upload.given_up.wait())
        try:
            done, _ = await asyncio.wait({arriving, leaving}, timeout=STALL_S, return_when=asyncio.FIRST_COMPLETED)
            if arriving not in done:
                raise Gone("the upload was ended, because it did not go on")
            message = arriving.result()
        finally:
            for waiting in (arriving, leaving):
                waiting.cancel()
        if message["type"] == "http.disconnect":
            raise Gone("the visitor has left")
        self.upload.received = self.read
        return message


def replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body that was read already, and after it the messages of the given `receive`."""
    sent = False

    async def replay() -> MutableMapping[str, Any]:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
