"""What every form of reply has: whole as one JSON value, or streamed as server-sent events."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import Any

from mmllm.serving.jobs import Ending, Event, Job
from mmllm.serving.refusals import Refused

_PATIENCE_S = 5.0
"""After so many seconds without a word, a comment line shows that the connection is alive."""
_COMMENT = ": waiting\n\n"


class Reply(ABC):
    """A reply in one of OpenAI's forms.

    Args:
        job: the question.
    """

    prefix: str
    """How ids of such replies begin."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.id, self.created_s = f"{self.prefix}{uuid.uuid4().hex}", int(time.time())

    @abstractmethod
    def whole(self, content: str, ending: Ending) -> dict[str, Any]:
        """The reply as one JSON value."""

    @abstractmethod
    def begin(self) -> list[str]:
        """The first events."""

    @abstractmethod
    def piece(self, text: str) -> list[str]:
        """Events of a piece of text."""

    @abstractmethod
    def end(self, content: str, ending: Ending) -> list[str]:
        """The last events, once the whole content has been sent."""

    @abstractmethod
    def failed(self, problem: Refused) -> list[str]:
        """The events of a failure after the first words."""

    def details(self, ending: Ending) -> dict[str, int]:
        """What the prompt consists of, and how much of it the LLM had kept."""
        return {"cached_tokens": ending.cached, **self.job.prompt.usage}


async def content_of(events: asyncio.Queue[Event]) -> tuple[str, Ending]:
    """The whole text of an answer and its end.

    Raises:
        BaseException: what came in place of an answer.
    """
    text = ""
    while True:
        event = await events.get()
        if isinstance(event, BaseException):
            raise event
        if isinstance(event, Ending):
            return text + event.piece, event
        text += event


async def streamed(reply: Reply, events: asyncio.Queue[Event], failure: Any) -> AsyncIterator[str]:
    """The server-sent events of a reply.

    Args:
        reply: its form.
        events: what comes of the answer.
        failure: turns an exception into a `Refused`.
    """
    for line in reply.begin():
        yield line
    text = ""
    while True:
        try:
            event = await asyncio.wait_for(events.get(), _PATIENCE_S)
        except TimeoutError:
            yield _COMMENT
            continue
        if isinstance(event, BaseException):
            for line in reply.failed(failure(event)):
                yield line
            return
        piece = event.piece if isinstance(event, Ending) else event
        text += piece
        for line in reply.piece(piece) if piece else ():
            yield line
        if isinstance(event, Ending):
            for line in reply.end(text, event):
                yield line
            return


def data_line(value: Any) -> str:
    """A server-sent event without a name."""
    return f"data: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}\n\n"
