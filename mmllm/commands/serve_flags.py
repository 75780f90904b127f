"""Flags of `mmllm serve`: where it listens and whom it serves, and its limits."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import tyro

from mmllm.app.browser_rules import LOOPBACK
from mmllm.commands.flags import checked_count, refuse_without
from mmllm.errors import InputError

KEY = "MMLLM_SERVE_KEY"
"""Environment variable with API keys, separated by commas."""
_PORTS = 1 << 16
_MOST_SECONDS = 24 * 3600.0


@dataclass(frozen=True, kw_only=True)
class ListenChoice:
    """Where a server listens, and whom it serves."""

    host: str = "127.0.0.1"
    """Address to listen at; another than this machine's own needs a key, or --no-auth."""
    port: int = 8000
    """Port to listen at; 0 for a free one."""
    key_file: Path | None = None
    """A file with an API key in each line, where lines that begin with # are notes; keys may also be in the environment
    variable MMLLM_SERVE_KEY, with commas between them. Keys are of ASCII characters."""
    no_auth: bool = False
    """Answer everybody who can reach the address."""
    allowed_host: tuple[str, ...] = ()
    """Names under which the server is reached beside those of this machine, such as a proxy's."""
    allow_media_host: tuple[str, ...] = ()
    """Hosts from which videos and images are downloaded; none by default."""
    drain_s: float = 30.0
    """Seconds that running answers have when the server ends."""

    @property
    def options(self) -> dict[str, Any]:
        """The fields of `ServeOptions` that the flags mean.

        Raises:
            InputError: naming the flag whose value is not allowed.
        """
        if not 0 <= self.port < _PORTS:
            raise InputError(f"--port {self.port}: cannot listen there; ports are from 0 to {_PORTS - 1}")
        keys = () if self.no_auth else api_keys(self.key_file)
        if not keys and not self.no_auth and self.host not in LOOPBACK:
            raise InputError(f"--host {self.host}: others can reach it; give keys by --key-file or {KEY}, or --no-auth")
        return {
            "host": self.host,
            "port": self.port,
            "keys": keys,
            "allowed_hosts": self.allowed_host,
            "media_hosts": self.allow_media_host,
            "drain_s": checked_seconds("--drain-s", self.drain_s),
        }


@dataclass(frozen=True, kw_only=True)
class LoadChoice:
    """How much a server takes, and how much it does at once."""

    frames: int = 200
    """Most frames that a request may sample."""
    upload_mb: int = 200
    """Most megabytes of an upload."""
    video_minutes: float = 90.0
    """Most minutes of a video."""
    new_tokens: int = 1024
    """Most tokens of an answer."""
    waiting: int = 256
    """Most questions under way; more are refused."""
    model_gb: float = 32.0
    """Gigabytes of loaded models; those used least recently are dropped."""
    decoders: int = 2
    """Files that are decoded at once."""
    rows: int = 16
    """Most questions of a batch; 1 for one at a time."""
    window_ms: float = 20.0
    """Milliseconds that a question waits for others."""
    batching: Literal["static", "continuous"] = "static"
    """static: questions that come together are one batch. continuous: they join and leave between any two tokens, by
    transformers' continuous batching; for own models, whose stages are all before the LLM."""
    cache_positions: int = 16384
    """With --batching continuous: positions that the LLM's cache holds, of all answers together."""
    step_tokens: int = 512
    """With --batching continuous: tokens of prompts that are read between two tokens of other answers."""
    engine: str | None = None
    """Address of an engine such as vLLM, http://127.0.0.1:8001/v1, that runs the LLM in place of this process; its key
    is in the environment variable MMLLM_ENGINE_KEY."""

    @property
    def limits(self) -> dict[str, Any]:
        """The fields of `ServeLimits` that the flags mean."""
        names = ("frames", "upload_mb", "new_tokens", "waiting", "model_gb")
        return {"video_s": self.video_minutes * 60, **{name: getattr(self, name) for name in names}}

    @property
    def options(self) -> dict[str, Any]:
        """The fields of `ServeOptions` that the flags mean.

        Raises:
            InputError: naming the flag whose value is not allowed.
        """
        window_s = checked_seconds("--window-ms", self.window_ms / 1000)
        if self.engine is not None and not is_engine_address(self.engine):
            raise InputError(f"--engine {self.engine}: must be an address such as http://127.0.0.1:8001/v1")
        return {
            "continuous": self._continuous,
            "decoders": checked_count("--decoders", self.decoders),
            "engine": self.engine,
            "batching": {"rows": checked_count("--rows", self.rows), "window_s": window_s},
        }

    @property
    def _continuous(self) -> dict[str, int] | None:
        """Options of `ContinuousThreads`; None for batches."""
        positions = checked_count("--cache-positions", self.cache_positions)
        tokens = checked_count("--step-tokens", self.step_tokens)
        if self.batching == "continuous":
            if self.engine is not None:
                raise InputError("--batching continuous: the engine of --engine makes its batches itself")
            return {"positions": positions, "step_tokens": tokens}
        refuse_without("--batching continuous", self, LOAD, ("cache_positions", "step_tokens"))
        return None


LISTEN, LOAD = ListenChoice(), LoadChoice()
ListenFlags = Annotated[ListenChoice, tyro.conf.arg(name="")]
"""The flags of `ListenChoice`, without a prefix."""
LoadFlags = Annotated[LoadChoice, tyro.conf.arg(name="")]
"""The flags of `LoadChoice`, without a prefix."""


def api_keys(file: Path | None) -> tuple[str, ...]:
    """The API keys of the environment and of a file.

    Raises:
        InputError: if the file cannot be read, or has none, or a key has other characters than ASCII's.
    """
    given = _keys(f"{KEY}: key", os.environ.get(KEY, "").split(","))
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as problem:
            raise InputError(f"--key-file {file}: {getattr(problem, 'strerror', None) or problem}") from None
        keys = _keys(f"--key-file {file}: line", ["" if line.lstrip().startswith("#") else line for line in lines])
        if not keys:
            raise InputError(f"--key-file {file}: no key is in it")
        given += keys
    return tuple(dict.fromkeys(given))


def _keys(where: str, entries: list[str]) -> list[str]:
    """The keys among some entries; a key itself is in no message.

    Args:
        where: they stand, before their number.
        entries: keys, and texts of nothing but spaces.

    Raises:
        InputError: with the number of an entry that headers cannot hold.
    """
    for number, entry in enumerate(entries, 1):
        if not (entry.strip().isascii() and entry.strip().isprintable()):
            raise InputError(f"{where} {number} has characters that are not ASCII's: a key has no others")
    return [entry.strip() for entry in entries if entry.strip()]


def is_engine_address(address: str) -> bool:
    """Whether an address can be one of an engine's."""
    try:
        parts = urlsplit(address)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def checked_seconds(flag: str, value: float) -> float:
    """The value of a flag that is a time.

    Raises:
        InputError: if it is negative, more than a day, or no number.
    """
    if not 0 <= value <= _MOST_SECONDS:
        raise InputError(f"{flag} {value:g}: must be zero or more, and at most a day")
    return value
