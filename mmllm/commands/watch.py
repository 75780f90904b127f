"""`mmllm watch SOURCE --question ...`: a line of JSON each time that something happens in a stream."""

from __future__ import annotations

import json as json_text
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from mmllm.commands.flags import AS_USUAL, HostedFlags, StageFlags, checked_count, given_flags, require_rate
from mmllm.errors import InputError
from mmllm.hub.sources import DEFAULT
from mmllm.stages import NO_CHANGES

if TYPE_CHECKING:
    from mmllm.video.live.frame import LiveFrame
    from mmllm.watch.records import Record


# long: a parameter and a line of help for each option
def watch(
    source: Annotated[str, tyro.conf.Positional],
    question: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    model: str = DEFAULT,
    stages: StageFlags = NO_CHANGES,
    hosted: HostedFlags = AS_USUAL,
    memory: Literal["window", "cache"] = "window",
    rate: float = 2.0,
    window: float | None = None,
    every: float = 0.5,
    settle: float | None = None,
    late: float = 2.0,
    agree: int | None = None,
    gap: float | None = None,
    idle: float = 10.0,
    seconds: float | None = None,
    fps: float = 5.0,
    allow_address: bool = False,
    max_new_tokens: int = 64,
) -> int:
    """Follow a stream and tell when something happens in it: one line of JSON for each event.

    Args:
        source: a file that grows, a named pipe, - for the standard input, a folder that fills with images or clips, a
            camera such as /dev/video0, or an rtsp:// address.
        question: a standing question, such as "When does the red circle spin?"; may be there several times.
        model: folder or hub id of a model; by default one that comes with mmllm. The small one, default-small,
            knows only synthetic clips of coloured shapes; the one that speaks looks at the whole window each time.
        stages: stages that replace the model's own.
        hosted: settings of hosted models.
        memory: window asks about the last seconds as about a video of their own; cache keeps what the LLM has read of
            the last frames, for models that read times as text.
        rate: frames a second that are looked at.
        window: seconds that are remembered; by default as many frames as the model samples from a video.
        every: seconds of the stream from one round of questions to the next.
        settle: an event has ended when it is over for so many seconds; 0.6 by default.
        late: an event that is found more than so many seconds after its end is not reported.
        agree: so many of the last answers have to name an event; 4 by default, or fewer where rounds are rare.
        gap: frames that are more seconds apart have a gap between them, which is reported; 2 by default, and at least
            three frames at the rate.
        idle: the stream is over when nothing has come for so many seconds.
        seconds: end after so many seconds of the stream.
        fps: images a second of a folder of images.
        allow_address: connect to an address of RTSP.
        max_new_tokens: most tokens of an answer.
    """
    from mmllm.inference.answering import VideoQA
    from mmllm.video.live.sources import follow
    from mmllm.watch.choosing import memory_of
    from mmllm.watch.config import WatchConfig
    from mmllm.watch.watcher import Watcher, require_questions

    require_rate(fps)
    if seconds is not None and not 0 < seconds < float("inf"):
        raise InputError(f"--seconds {seconds:g}: must be a positive number")
    chosen: dict[str, Any] = {"window_s": window, "settle_s": settle, "gap_s": gap, "agree": agree}
    config = WatchConfig(memory=memory, rate=rate, every_s=every, late_s=late, **given_flags(chosen))
    checked_count("--max-new-tokens", max_new_tokens)
    require_questions(question)
    why = "the stream is over"
    assert config.gap_s is not None
    with stopped_by_signals() as stopped:
        frames = follow(
            source,
            rate,
            fps=fps,
            idle_s=idle,
            gap_s=config.gap_s,
            allow_address=allow_address,
            stopped=lambda: bool(stopped),
            skipped=_say_skipped,
        )
        qa = VideoQA.from_pretrained(model, **stages.by_slot, **hosted.given)
        qa.max_new_tokens = max_new_tokens
        watcher = Watcher(memory_of(qa, config), question, config)
        for record in watcher.watch(_until(frames, seconds, lambda: bool(stopped))):
            _say(record)
    if stopped:
        why = f"stopped by {stopped[0].name}"
    elif seconds is not None and watcher.figures.last_s >= seconds - 1 / rate:
        why = "--seconds are over"
    _say(watcher.figures.record(why))
    return 143 if signal.SIGTERM in stopped else 0


def _until(frames: Iterator[LiveFrame], seconds: float | None, stopped: Callable[[], bool]) -> Iterator[LiveFrame]:
    """The frames before an instant, as long as nothing stops them."""
    for frame in frames:
        if stopped() or (seconds is not None and frame.time_s >= seconds):
            return
        yield frame


@contextmanager
def stopped_by_signals() -> Iterator[list[signal.Signals]]:
    """A list into which the first Ctrl-C or SIGTERM puts its signal; a second one interrupts."""
    stopped: list[signal.Signals] = []

    def stop(number: int, _frame: object) -> None:
        if stopped:
            raise KeyboardInterrupt
        stopped.append(signal.Signals(number))

    if threading.current_thread() is not threading.main_thread():  # only the main thread gets signals
        yield stopped
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(record: Record) -> None:
    print(json_text.dumps(record.to_json(), ensure_ascii=False), flush=True)


def _say_skipped(reason: str) -> None:
    print(json_text.dumps({"kind": "skipped", "reason": reason}, ensure_ascii=False), flush=True)
