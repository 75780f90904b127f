"""A chat model behind an OpenAI-compatible interface, its replies kept on disk.

A request is asked once: its reply lies in a file named after all that the reply depends on, so that a stopped run goes
on for free and scores can be computed again without a network.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmllm.errors import InputError, MmllmError
from mmllm.fields import require
from mmllm.times.stamps import shortened

KEYS = ("MMLLM_JUDGE_KEY", "OPENAI_API_KEY")
"""Environment variables that may hold the key, the first one that is set."""
BUSY = (408, 409, 425, 429, 500, 502, 503, 504, 529)
"""Answers of a server that may go away by themselves."""

Message = Mapping[str, str]


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
    """How often a request is sent before its endpoint is given up."""
    pause_s: float = 1.0
    """Wait before the second attempt, doubled for each further one."""

    def __post_init__(self) -> None:
        require(self.url.startswith(("http://", "https://")), self, "url", "an address that begins with http(s)://")
        require(bool(self.model), self, "model", "the name of a model at that address")
        require(self.temperature >= 0, self, "temperature", "zero or more")
        require(self.max_tokens >= 1, self, "max_tokens", "at least 1")
        require(self.timeout_s > 0, self, "timeout_s", "above zero")
        require(self.attempts >= 1, self, "attempts", "at least 1")
        require(self.pause_s >= 0, self, "pause_s", "zero or more")


class _StayHere(urllib.request.HTTPRedirectHandler):
    """Takes a redirection for a refusal: the key is for this address only."""

    def redirect_request(self, *_: Any) -> None:
        """Nowhere."""
        return


_OPENER = urllib.request.build_opener(_StayHere)


class Endpoint:
    """Asks a chat model, each question once.

    Args:
        config: which model.
        cache: folder of the replies.
    """

    def __init__(self, config: EndpointConfig, cache: Path) -> None:
        self.config = config
        self.cache = cache

    def reply(self, messages: Sequence[Message]) -> str:
        """What the model says to a conversation.

        Raises:
            InputError: if the endpoint refuses the request.
            MmllmError: if it cannot be reached or gives nothing usable, however often it is asked.
        """
        body = {
            "model": self.config.model,
            "messages": list(messages),
            "temperature": self.config.temperature,
            "max_tokens": self.config.max_tokens,
        }
        kept = self.cache / f"{hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:32]}.json"
        try:
            return str(json.loads(kept.read_text(encoding="utf-8"))["reply"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        reply = self._ask(body)
        self.cache.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(f".{os.getpid()}-{threading.get_ident()}.part")
        partial.write_text(json.dumps({"request": body, "reply": reply}, ensure_ascii=False, indent=1) + "\n")
        os.replace(partial, kept)
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
                    return _said(json.loads(response.read()))
            except urllib.error.HTTPError as refusal:
                told = shortened(refusal.read().decode("utf-8", "replace"), 200)
                problem = f"{refusal.code} {refusal.reason}: {told}"
                if refusal.code not in BUSY:
                    hint = f" (is the key right? {' or '.join(KEYS)})" if refusal.code in (401, 403) else ""
                    raise InputError(f"{address} refuses to be asked: {problem}{hint}") from None
            except (OSError, ValueError) as failure:  # not reached, too late, or not what was promised
                problem = str(failure) or type(failure).__name__
        raise MmllmError(f"{address} gave no reply in {self.config.attempts} attempts: {problem}")


def _said(response: Any) -> str:
    """The text of a reply; an empty one where the model said nothing.

    Raises:
        ValueError: if it is no reply.
    """
    try:
        return response["choices"][0]["message"]["content"] or ""
    except (KeyError, IndexError, TypeError):
        raise ValueError(f"not a chat completion: {shortened(repr(response))}") from None
