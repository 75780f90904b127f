"""The running server: its folder, its socket, and its end."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from mmllm.app.browser_rules import BrowserRules
from mmllm.app.private_folder import folder_of_process
from mmllm.app.uploads import Room
from mmllm.errors import InputError
from mmllm.serving.addresses import MediaAddresses
from mmllm.serving.answering import Answering
from mmllm.serving.application import application
from mmllm.serving.files import FileStore
from mmllm.serving.guard import ServeGuard
from mmllm.serving.limits import ServeLimits
from mmllm.serving.metrics import Metrics
from mmllm.serving.models import Models

PREFIX = "mmllm-serve-"
"""How the names of servers' folders begin."""
_POLL_S = 0.05
_LAST_WORDS_S = 5.0
"""Seconds in which answers that are cut short may be sent."""


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """How a server listens, and whom it serves."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 for a free one."""
    keys: Sequence[str] = ()
    """API keys; none for a server that answers everybody."""
    allowed_hosts: Sequence[str] = ()
    """Names under which it is served beside those of this machine."""
    media_hosts: Sequence[str] = ()
    """Hosts from which media are downloaded."""
    drain_s: float = 30.0
    """Seconds that running answers have at the end of the server."""
    decoders: int = 2
    """Files that are decoded at once."""
    engine: str | None = None
    """Address of an engine that runs the LLM in place of this process."""
    continuous: Mapping[str, int] | None = None
    """Options of `ContinuousThreads`; None if questions are answered in batches."""
    batching: Mapping[str, Any] = field(default_factory=dict)
    """Options of `LlmThread`."""


class Server(uvicorn.Server):
    """A uvicorn server that lets running answers end: SIGTERM and Ctrl-C begin its end, a second one ends it at once.

    Args:
        config: of uvicorn.
        answering: whose answers are waited for.
        drain_s: how long.
    """

    draining = False
    """Whether it is about to end."""

    def __init__(self, config: uvicorn.Config, answering: Answering, drain_s: float) -> None:
        super().__init__(config)
        self.answering, self.drain_s = answering, drain_s

    def drain(self) -> None:
        """Begins the end: new questions are refused, running ones have their time."""
        if self.draining:
            self.should_exit = self.force_exit = True
            return
        self.draining = True
        threading.Thread(target=self._drained, daemon=True, name="mmllm-drain").start()

    def _drained(self) -> None:
        self._wait(self.drain_s)
        self.answering.cut_short()
        self._wait(_LAST_WORDS_S)
        self.should_exit = True

    def _wait(self, seconds: float) -> None:
        until_s = time.monotonic() + seconds
        while self.answering.under_way and time.monotonic() < until_s:
            time.sleep(_POLL_S)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Our handling of signals in place of uvicorn's, while it serves in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(_number: int, _frame: FrameType | None) -> None:
            self.drain()

        before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A server that listens, and has not answered yet."""

    server: Server
    listening: socket.socket
    url: str
    answering: Answering
    folder: Path
    """Its private folder."""

    def run(self) -> None:
        """Answers until the server ends."""
        self.server.run(sockets=[self.listening])


@contextlib.contextmanager
def ready_server(models: Models, limits: ServeLimits, options: ServeOptions) -> Iterator[Ready]:
    """A server, whose folder is removed at the end of the block.

    Args:
        models: what is served.
        limits: upper bounds.
        options: how it listens.

    Raises:
        InputError: if it cannot listen at that address.
    """
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(_socket(options.host, options.port))
        folder = stack.enter_context(folder_of_process(PREFIX, limits.upload_age_s))
        metrics = Metrics()
        files = FileStore(folder, limits)
        addresses = MediaAddresses(files, limits.video, options.media_hosts)
        parts = {name: getattr(options, name) for name in ("decoders", "engine", "continuous")} | dict(options.batching)
        answering = Answering(models, addresses, folder, limits, metrics, **parts)
        stack.callback(answering.close)
        guard = ServeGuard(
            application(answering, ending=lambda: server.draining),
            limits=limits,
            rules=BrowserRules(host=options.host, allowed_hosts=options.allowed_hosts, name="the server"),
            room=Room(folder, limits.all_uploads_mb * 1_000_000),
            keys=options.keys,
            metrics=metrics,
            ending=lambda: server.draining,
        )
        quiet: dict[str, Any] = {"log_level": "warning", "access_log": False, "server_header": False}
        config = uvicorn.Config(guard, timeout_graceful_shutdown=5, lifespan="off", **quiet)
        server = Server(config, answering, options.drain_s)
        name = f"[{options.host}]" if ":" in options.host else options.host
        url = f"http://{name}:{listening.getsockname()[1]}"
        yield Ready(server=server, listening=listening, url=url, answering=answering, folder=folder)


@contextlib.contextmanager
def _socket(host: str, port: int) -> Iterator[socket.socket]:
    """A listening socket: a taken port is told before a model is used."""
    try:
        place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(place[0], place[1])
    except (OSError, OverflowError, UnicodeError) as problem:
        raise InputError(f"cannot listen at {host}:{port}: {problem}") from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(place[4])
            listening.listen(2048)
        except (OSError, OverflowError) as problem:
            raise InputError(f"cannot listen at {host}:{port}: {problem}") from None
        yield listening
    finally:
        listening.close()
