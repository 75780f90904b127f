"""`mmllm demo`: ask questions about videos in the browser."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mmllm.app.limits import MOST_FRAMES, DemoLimits
from mmllm.commands.flags import AS_USUAL, HostedFlags, StageFlags
from mmllm.errors import InputError, require_extra
from mmllm.stages import NO_CHANGES

if TYPE_CHECKING:
    from gradio import Blocks

    from mmllm.app.handlers import Handlers
    from mmllm.inference.asking import VideoAnswering


@dataclass(frozen=True, kw_only=True)
class Running:
    """A running demo."""

    url: str
    """Its address on this machine."""
    share_url: str | None
    """Its public address; None if `share` was not set."""
    blocks: Blocks
    handlers: Handlers
    folder: Path
    """Its private folder, for uploads and exported files."""


def demo(
    model: str | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    frames: int | None = None,
    upload_mb: int = 200,
    video_minutes: float = 90.0,
    browser: bool = False,
    allowed_host: tuple[str, ...] = (),
    decoding: tuple[str, ...] = (),
    stages: StageFlags = NO_CHANGES,
    hosted: HostedFlags = AS_USUAL,
) -> None:
    """Ask questions about videos in the browser, and see the answers on a timeline.

    Args:
        model: folder or hub id of a model; by default the one that comes with mmllm.
        host: address to listen at; 0.0.0.0 lets other machines of the network connect.
        port: port to listen at; by default the first free one from 7860 on.
        share: make a public link through Gradio's servers.
        frames: number of sampled frames; by default the model's own number. Visitors may choose up to 200, or as many
            as this.
        upload_mb: most megabytes of an upload.
        video_minutes: most minutes of a video.
        browser: open the page in the default browser.
        allowed_host: names under which the demo is served beside those of this machine, such as a proxy's.
        decoding: decoding methods that visitors find by their names beside the others, such as flash:draft=FOLDER.
        hosted: settings of hosted models.
        stages: stages that replace the model's own; a visitor can choose others for reducer and path.
    """
    require_extra("demo", "the demo")
    most = min(max(DemoLimits.frames, frames or 0), MOST_FRAMES)
    limits = DemoLimits(upload_mb=upload_mb, video_s=video_minutes * 60, frames=most)
    qa, name = load(model, **stages.by_slot, **hosted.given)
    if frames is not None:
        qa.processor.num_frames = limits.checked_frames(frames)
    if qa.note:
        print(f"note: {qa.note}", file=sys.stderr)
    signal.signal(signal.SIGTERM, _exit)
    with running(
        qa, name, limits, host=host, port=port, share=share, browser=browser, allowed_hosts=allowed_host,
        decodings=decoding,
    ) as server:  # fmt: skip
        public = f" and {server.share_url}" if server.share_url else ""
        print(f"{name} answers at {server.url}{public}", flush=True)
        if host not in ("127.0.0.1", "localhost", "::1") or share:
            print("everybody who can reach this address can ask questions", flush=True)
        print("Ctrl-C ends it", flush=True)
        threading.Event().wait()


def _exit(number: int, _frame: object) -> None:
    """Ends the process as Ctrl-C does, so that the private folder is removed; the exit code is 128 + `number`."""
    raise SystemExit(128 + number)


def load(model: str | None, **changes: Any) -> tuple[VideoAnswering, str]:
    """The model and its name; by default the model that comes with mmllm. `changes` are stages by slot."""
    from mmllm.hub.sources import DEFAULT
    from mmllm.inference.answering import VideoQA

    model = DEFAULT if model is None else model
    return VideoQA.from_pretrained(model, **changes), "/".join(Path(model).parts[-2:])


@contextlib.contextmanager
def running(
    qa: VideoAnswering,
    name: str,
    limits: DemoLimits,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    browser: bool = False,
    allowed_hosts: Sequence[str] = (),
    decodings: Sequence[str] = (),
) -> Iterator[Running]:
    """A demo that runs in the background until the block ends; then its folder is removed.

    Args:
        qa: the model.
        name: the model's name on the page.
        limits: upper bounds for what visitors may ask.
        host, port, share, browser, allowed_hosts: as for `demo`.
        decodings: the decoding methods of its owner.

    Raises:
        InputError: if the server cannot listen at this address.
    """
    require_extra("demo", "the demo")
    from mmllm.app.private_folder import private_folder

    with private_folder(limits) as folder:
        from starlette.middleware import Middleware

        from mmllm.app.browser_rules import BrowserRules
        from mmllm.app.calls import Calls
        from mmllm.app.engine import Engine
        from mmllm.app.examples import example_clips
        from mmllm.app.handlers import Handlers
        from mmllm.app.page import STYLE, page, theme
        from mmllm.app.safety import Guard

        examples = example_clips()
        example_folders = list(dict.fromkeys(example.path.parent for example in examples))
        handlers = Handlers(Engine(qa, limits, decodings=decodings), examples, folder, name)
        handlers.open_first()  # encodes the first example, so that the first visitor does not wait for it
        blocks = page(handlers)
        rules = BrowserRules(host=host, allowed_hosts=allowed_hosts)
        guard = Middleware(
            Guard, folders=[folder, *example_folders], limits=limits, rules=rules, calls=Calls.of(blocks)
        )
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
                allowed_paths=[str(example_folder) for example_folder in example_folders],
                app_kwargs={"middleware": [guard]},
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
        if share_url:
            rules.allow(urlsplit(share_url).hostname or "")
        try:
            yield Running(url=url, share_url=share_url, blocks=blocks, handlers=handlers, folder=folder)
        finally:
            blocks.close(verbose=False)
