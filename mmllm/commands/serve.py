"""`mmllm serve`: OpenAI's chat completions and responses about videos, with spans in seconds."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from mmllm.app.browser_rules import LOOPBACK
from mmllm.commands.flags import AS_USUAL, HostedFlags, StageFlags, checked_count
from mmllm.errors import InputError, require_extra
from mmllm.hub.sources import DEFAULT, checked_source
from mmllm.stages import NO_CHANGES

if TYPE_CHECKING:
    from mmllm.inference.asking import VideoAnswering

KEY = "MMLLM_SERVE_KEY"
"""Environment variable with API keys, separated by commas."""
_PORTS = 1 << 16
_MOST_SECONDS = 24 * 3600.0


def serve(
    models: Annotated[tuple[str, ...], tyro.conf.Positional] = (DEFAULT,),
    host: str = "127.0.0.1",
    port: int = 8000,
    key_file: Path | None = None,
    no_auth: bool = False,
    allowed_host: tuple[str, ...] = (),
    allow_media_host: tuple[str, ...] = (),
    frames: int = 200,
    upload_mb: int = 200,
    video_minutes: float = 90.0,
    new_tokens: int = 1024,
    waiting: int = 256,
    model_gb: float = 32.0,
    decoders: int = 2,
    rows: int = 16,
    window_ms: float = 20.0,
    drain_s: float = 30.0,
    stages: StageFlags = NO_CHANGES,
    hosted: HostedFlags = AS_USUAL,
) -> None:
    """Answer questions about videos at an OpenAI-compatible address, with spans in seconds.

    API keys come from the file, or from the environment variable MMLLM_SERVE_KEY (several: separated by commas).

    Args:
        models: folders or hub ids, also NAME=FOLDER; by default the model that comes with mmllm. The first is loaded
            at once, others when they are asked.
        host: address to listen at; another than this machine's own needs a key, or --no-auth.
        port: port to listen at; 0 for a free one.
        key_file: a file with an API key in each line.
        no_auth: answer everybody who can reach the address.
        allowed_host: names under which the server is reached beside those of this machine, such as a proxy's.
        allow_media_host: hosts from which videos and images are downloaded; none by default.
        frames: most frames that a request may sample.
        upload_mb: most megabytes of an upload.
        video_minutes: most minutes of a video.
        new_tokens: most tokens of an answer.
        waiting: most questions under way; more are refused.
        model_gb: gigabytes of loaded models; those used least recently are dropped.
        decoders: files that are decoded at once.
        rows: most questions of a batch; 1 for one at a time.
        window_ms: milliseconds that a question waits for others.
        drain_s: seconds that running answers have when the server ends.
        stages: stages that replace the models' own; a request can choose reducer and path.
        hosted: settings of hosted models.
    """
    require_extra("serve", "the server")
    sources = named(models)
    keys = api_keys(key_file)
    if not keys and not no_auth and host not in LOOPBACK:
        raise InputError(f"--host {host}: others can reach it; give keys by --key-file or {KEY}, or --no-auth")
    if not 0 <= port < _PORTS:
        raise InputError(f"--port {port}: cannot listen there; ports are from 0 to {_PORTS - 1}")
    checked_count("--rows", rows)
    checked_count("--decoders", decoders)
    checked_seconds("--drain-s", drain_s)
    checked_seconds("--window-ms", window_ms / 1000)
    from mmllm.serving.limits import ServeLimits
    from mmllm.serving.models import Models
    from mmllm.serving.running import ServeOptions, ready_server

    limits = ServeLimits(
        frames=frames,
        upload_mb=upload_mb,
        video_s=video_minutes * 60,
        new_tokens=new_tokens,
        waiting=waiting,
        model_gb=model_gb,
    )
    served = Models(sources, lambda source: _loaded(source, stages, hosted), int(limits.model_gb * 1e9))
    options = ServeOptions(
        host=host,
        port=port,
        keys=keys if not no_auth else (),
        allowed_hosts=allowed_host,
        media_hosts=allow_media_host,
        drain_s=drain_s,
        decoders=decoders,
        batching={"rows": rows, "window_s": window_ms / 1000},
    )
    with ready_server(served, limits, options) as ready:
        with served.use(next(iter(sources))):
            pass  # a model that cannot be loaded is told before anybody asks
        print(f"{', '.join(sources)} at {ready.url}/v1", flush=True)
        if host not in LOOPBACK and no_auth:
            print("everybody who can reach this address can ask questions", flush=True)
        ready.run()


def named(models: tuple[str, ...]) -> dict[str, str]:
    """Name -> folder or hub id, of `NAME=FOLDER` or a bare folder or id, which is its own name.

    Raises:
        InputError: if two have one name.
        CheckpointError: if there is no such model.
    """
    sources: dict[str, str] = {}
    for given in models:
        name, equals, source = given.partition("=")
        if not equals:
            source = name
        if not name or name in sources:
            raise InputError(f"{given}: {'two models have this name' if name else 'the name is missing'}")
        checked_source(source)
        sources[name] = source
    return sources


def api_keys(file: Path | None) -> tuple[str, ...]:
    """The API keys of a file and of the environment.

    Raises:
        InputError: if the file cannot be read, or has none.
    """
    given = os.environ.get(KEY, "").split(",")
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as problem:
            raise InputError(f"--key-file {file}: {getattr(problem, 'strerror', None) or problem}") from None
        if not any(line.strip() for line in lines):
            raise InputError(f"--key-file {file}: no key is in it")
        given += lines
    return tuple(dict.fromkeys(key.strip() for key in given if key.strip()))


def checked_seconds(flag: str, value: float) -> None:
    """Refuses a value of a flag that is no time.

    Raises:
        InputError: naming the flag.
    """
    if not 0 <= value <= _MOST_SECONDS:
        raise InputError(f"{flag} {value:g}: must be zero or more, and at most a day")


def _loaded(source: str, stages: Any, hosted: Any) -> VideoAnswering:
    from mmllm.inference.answering import VideoQA

    qa = VideoQA.from_pretrained(source, **stages.by_slot, **hosted.given)
    if qa.note:
        print(f"note: {source}: {qa.note}", file=sys.stderr)
    return qa
