"""A chat model behind an OpenAI-compatible interface, with a cache of its replies on disk.

Each request is sent once. Its reply is stored in a file whose name is a hash of the whole request. So a stopped run
can go on without asking again, and scores can be computed again without a network.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmllm.errors import InputError, MmllmError
from mmllm.fields import require
from mmllm.runtime.files import make_folder, write_json
from mmllm.times.stamps import shortened

KEYS = ("MMLLM_JUDGE_KEY", "OPENAI_API_KEY")
"""Environment variables that may hold the key. The first one that is set counts."""
BUSY = (408, 409, 425, 429, 500, 502, 503, 504, 529)
"""HTTP statuses after which another attempt may succeed."""

Message = Mapping[str, Any]
"""A role and its content: a text, or parts such as texts and images."""


@dataclass(frozen=True, kw_only=True)
class EndpointConfig:
    """Which model is asked, and how."""

    url: str
    """Address up to the version, such as `https://api.openai.com/v1` or `http://localhost:8000/v1`."""
    model: str
    temperature: float = 0.2
    max_tokens: int = 1024
    timeout_s: float = 60.0
    """Longest wait for one reply."""
    attempts: int = 5
    """A request is sent at most so many times."""
    pause_s: float = 1.0
    """Pause before the second attempt; doubled before each further one."""

    def __post_init__(self) -> None:
        require(self.url.startswith(("http://", "https://")), self, "url", "an address that begins with http(s)://")
        require(bool(self.model), self, "model", "the name of a model at that address")
        require(self.temperature >= 0, self, "temperature", "zero or more")
        require(self.max_tokens >= 1, self, "max_tokens", "at least 1")
        require(self.timeout_s > 0, self, "timeout_s", "above zero")
        require(self.attempts >= 1, self, "attempts", "at least 1")
        require(self.pause_s >= 0, self, "pause_s", "zero or more")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Makes a redirection an error: the key must not be sent to another address."""

    def redirect_request(self, *_: Any) -> None:
        """Returns None, which tells urllib to raise an HTTPError."""


_OPENER = urllib.request.build_opener(_NoRedirects)


class Endpoint:
    """Sends requests to a chat model, each request once.

    Args:
        config: the model's address and settings.
        cache: folder of the stored replies.
    """

    def __init__(self, config: EndpointConfig, cache: Path) -> None:
        self.config = config
        self.cache = cache

    def reply(self, messages: Sequence[Message]) -> str:
        """The model's reply to a conversation.

        Raises:
            InputError: if the endpoint refuses the request.
            MmllmError: if the endpoint cannot be reached, or gives no usable reply in all attempts.
        """
        body = {
            "model": self.config.model,
            "messages": list(messages),
            "temperature": self.config.temperature,
            "max_tokens": self.config.max_tokens,
        }
        cached = self.cache / f"{hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:32]}.json"
        try:
            return str(json.loads(cached.read_text(encoding="utf-8"))["reply"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # not asked before, or the file is damaged
        reply = self._ask(body)
        make_folder(self.cache)
        write_json(cached, {"request": body, "reply": reply}, indent=1)
        return reply

    def _ask(self, body: dict[str, Any]) -> str:
        address = self.config.url.rstrip("/") + "/chat/completions"
        headers = {"Content-Type": "application/json"}
        key = next((os.environ[name] for name in KEYS if os.environ.get(name)), None)
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(address, json.dumps(body).encode(), headers)
        problem = ""
        for attempt in range(self.config.attempts):
            if attempt:
                time.sleep(self.config.pause_s * 2 ** (attempt - 1))
            try:
                with _OPENER.open(request, timeout=self.config.timeout_s) as response:
                    return _reply_text(json.loads(response.read()))
            except urllib.error.HTTPError as refusal:
                message = shortened(refusal.read().decode("utf-8", "replace"), 200)
                problem = f"{refusal.code} {refusal.reason}: {message}"
                if refusal.code not in BUSY:
                    hint = f" (check the key in {' or '.join(KEYS)})" if refusal.code in (401, 403) else ""
                    raise InputError(f"{address} refuses the request: {problem}{hint}") from None
            except (OSError, ValueError) as failure:  # not reached, timed out, or not a chat completion
                problem = str(failure) or type(failure).__name__
        raise MmllmError(f"{address} gave no reply in {self.config.attempts} attempts: {problem}")


def _reply_text(response: Any) -> str:
    """The text of a chat completion; empty if the model wrote nothing.

    Raises:
        ValueError: if the response is not a chat completion.
    """
    try:
        return response["choices"][0]["message"]["content"] or ""
    except (KeyError, IndexError, TypeError):
        raise ValueError(f"not a chat completion: {shortened(repr(response))}") from None
