"""`mmllm demo`: ask videos in the browser."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmllm.app.limits import DemoLimits
from mmllm.errors import InputError

if TYPE_CHECKING:
    from gradio import Blocks

    from mmllm.app.handlers import Handlers
    from mmllm.inference.answering import VideoQA


@dataclass(frozen=True, kw_only=True)
class Running:
    """A demo that is up."""

    url: str
    """Where it is, on this machine."""
    share_url: str | None
    """Where it is for everybody, if that was asked for."""
    blocks: Blocks
    handlers: Handlers
    folder: Path
    """Its private folder."""


def demo(
    model: str | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    frames: int | None = None,
    upload_mb: int = 200,
    video_minutes: float = 30.0,
    browser: bool = False,
) -> None:
    """Ask videos in the browser, and see the answers on their timelines.

    Args:
        model: folder or hub id of a model; by default the one that comes with mmllm.
        host: address to listen at; 0.0.0.0 lets others on the network in.
        port: port to listen at; by default the first free one from 7860.
        share: make a public link through Gradio's servers.
        frames: how many frames are sampled; the model's own number if not given.
        upload_mb: largest upload in megabytes.
        video_minutes: longest video in minutes.
        browser: open the page in the default browser.
    """
    limits = DemoLimits(upload_mb=upload_mb, video_s=video_minutes * 60)
    qa, name = load(model)
    if frames is not None:
        qa.processor.num_frames = limits.checked_frames(frames)
    if qa.note:
        print(f"note: {qa.note}", file=sys.stderr)
    signal.signal(signal.SIGTERM, _end)
    with running(qa, name, limits, host=host, port=port, share=share, browser=browser) as up:
        print(f"{name} answers at {up.url}" + (f" and {up.share_url}" if up.share_url else ""), flush=True)
        if host not in ("127.0.0.1", "localhost", "::1") or share:
            print("everybody who can reach this address can ask", flush=True)
        print("Ctrl-C ends it", flush=True)
        threading.Event().wait()


def _end(number: int, _frame: object) -> None:
    """Ends as Ctrl-C does, so that the private folder is removed, with the exit code of a termination."""
    raise SystemExit(128 + number)


def load(model: str | None) -> tuple[VideoQA, str]:
    """The model to show and its name; the one that comes with mmllm if none is named."""
    from mmllm.hub.sources import DEFAULT
    from mmllm.inference.answering import VideoQA

    model = DEFAULT if model is None else model
    return VideoQA.from_pretrained(model), "/".join(Path(model).parts[-2:])


@contextlib.contextmanager
def running(
    qa: VideoQA,
    name: str,
    limits: DemoLimits,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    browser: bool = False,
) -> Iterator[Running]:
    """A demo that runs in the background until the block is left, and then leaves nothing behind.

    Args:
        qa: the model.
        name: what to call it.
        limits: what visitors may ask of it.
        host, port, share, browser: as for `demo`.

    Raises:
        InputError: if the address cannot be listened at.
    """
    from mmllm.app.safety import Guard, private_folder

    with private_folder(limits) as folder:
        from starlette.middleware import Middleware

        from mmllm.app.engine import Engine
        from mmllm.app.examples import example_clips
        from mmllm.app.handlers import Handlers
        from mmllm.app.page import STYLE, page, theme

        examples = example_clips()
        shown = list(dict.fromkeys(example.path.parent for example in examples))
        handlers = Handlers(Engine(qa, limits), examples, folder, name)
        handlers.open_first()  # so that the first visitor need not wait for it
        blocks = page(handlers)
        try:
            _, url, share_url = blocks.launch(
                server_name=host,
                server_port=port,
                share=share,
                inbrowser=browser,
                prevent_thread_lock=True,
                quiet=True,
                show_error=False,
                max_file_size=limits.upload_mb * 1_000_000,
                allowed_paths=[str(one) for one in shown],
                app_kwargs={"middleware": [Middleware(Guard, folders=[folder, *shown], limits=limits)]},
                theme=theme(),
                css_paths=STYLE,
                footer_links=["api", "settings"],
                run_history=False,
                enable_monitoring=False,
                ssr_mode=False,
                mcp_server=False,
                pwa=False,
                state_session_capacity=1000,
            )
        except OSError as problem:
            raise InputError(f"cannot listen at {host}:{port or '7860 and above'}: {problem}") from None
        try:
            yield Running(url=url, share_url=share_url, blocks=blocks, handlers=handlers, folder=folder)
        finally:
            blocks.close(verbose=False)
