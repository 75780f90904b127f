"""Refusals in OpenAI's form: `{"error": {"message", "type", "param", "code"}}` with a status."""

from __future__ import annotations

import logging
import re
import uuid
from pathlib import Path
from typing import Any

from mmllm.errors import ConfigError, InputError
from mmllm.inference.prompts import PromptTooLong
from mmllm.video.errors import VideoError

log = logging.getLogger(__name__)

_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_RETRY_S = 5


class Refused(Exception):
    """A request that is not answered.

    Args:
        status: of HTTP.
        message: what is wrong and what is allowed.
        code: for programs, such as `unknown_parameter`.
        param: the field of the request that is wrong.
    """

    def __init__(self, status: int, message: str, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param

    @property
    def body(self) -> dict[str, Any]:
        """The JSON value that clients read."""
        kind = _KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """When to come again, if that helps."""
        return {"retry-after": str(_RETRY_S)} if self.status in (429, 503) else {}


def client_left() -> Refused:
    """What ends a question whose client has left; nobody reads it."""
    return Refused(499, "the client has left", "cancelled")


def refusal_of(problem: BaseException, folder: Path, param: str | None = None) -> Refused:
    """What a client is told of a problem. A path of the server never is.

    Args:
        problem: what was raised.
        folder: of the server's files; a path in it becomes "the file".
        param: the field of the request that is to blame.
    """
    if isinstance(problem, Refused):
        return problem
    message = re.sub(re.escape(str(folder)) + r"[^\s:,]*", "the file", " ".join(str(problem).split()))
    if isinstance(problem, PromptTooLong):
        return Refused(400, message, "context_length_exceeded", "messages")
    if isinstance(problem, ConfigError):
        return Refused(400, message, "bad_settings", param)
    if isinstance(problem, VideoError):
        return Refused(400, message, "bad_media", param)
    if isinstance(problem, InputError):
        return Refused(400, message, "bad_request", param)
    return server_fault("the server failed", "internal", problem)


def server_fault(said: str, code: str, problem: BaseException) -> Refused:
    """What a client is told of a fault that is not its own: nothing but where the server's log says why.

    Args:
        said: what failed, without a path.
        code: for programs.
        problem: what was raised; it is logged.
    """
    number = uuid.uuid4().hex[:12]
    log.error("%s: %s", said, number, exc_info=problem)
    return Refused(500, f"{said}; the server's log says why under {number}", code)
