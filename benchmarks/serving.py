"""Answers a second of `mmllm serve`: to one client, then to many at once. Only 127.0.0.1 is asked.

    python benchmarks/serving.py                                # minutes: 64 clients, the model that comes with mmllm
    python benchmarks/serving.py --seconds 120 --json out.json

All clients ask about one video, or each question comes with a video that the server has not seen. Questions without an
answer are counted, and the server's memory is read after each half of the time. The single client asks for a quarter of
it. Processor time is that of the server alone, without the processes that decode.
"""

from __future__ import annotations

import base64
import itertools
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.layouts import line
from benchmarks.results import Results, command_line, machine, option_parser
from mmllm.synthetic.clips import SyntheticConfig, clip
from mmllm.synthetic.drawing import draw_pieces
from mmllm.synthetic.rendering import encode

QUESTIONS = ("When is the green square on screen?", "When does the red circle grow?", "When is the star visible?")
VIDEOS = ("one video", "a new video each")
_ANSWER_S = 120.0
"""Seconds after which a client gives a question up."""
_MOST_CLIENTS = 256


def main(arguments: Sequence[str] | None = None) -> None:
    """Starts servers, asks, and prints what it measured."""
    parser = option_parser(__doc__)
    parser.add_argument("--clients", type=int, default=64, help="at most 256")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each measurement")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--video-s", type=float, default=30.0)
    parser.add_argument("--videos", choices=VIDEOS, nargs="+", default=VIDEOS, help="what is asked about")
    parser.add_argument("--batching", choices=("static", "continuous"), default="static", help="of the server")
    given = parser.parse_args(arguments)
    clients = min(given.clients, _MOST_CLIENTS)
    results = Results(command_line(__file__, arguments), machine("torch", "fastapi", "uvicorn"))
    with tempfile.TemporaryDirectory() as folder:
        clips = rendered(Path(folder), given.video_s)
        for videos in given.videos:
            with served(given.rows, given.batching) as (url, process):
                body = bodies(clips, new=videos != VIDEOS[0])
                measured(url, body, 1, min(5.0, given.seconds))  # everything is loaded and was run once
                before_s = processor_s(process)
                alone = measured(url, body, 1, given.seconds / 4)
                alone_s = processor_s(process) - before_s
                halves, memory_mb = [], []
                for _ in range(2):
                    halves.append(measured(url, body, clients, given.seconds / 2))
                    memory_mb.append(process.memory_info().rss / 10**6)
                together_s = processor_s(process) - before_s - alone_s
            per_s = sum(half.per_s for half in halves) / 2
            numbers = {
                "clients": clients,
                "alone_per_s": alone.per_s,
                "clients_per_s": per_s,
                "faster_ratio": per_s / alone.per_s,
                "alone_cpu_ms": 1000 * alone_s / alone.answers,
                "clients_cpu_ms": 1000 * together_s / sum(half.answers for half in halves),
                "lost": alone.lost + sum(half.lost for half in halves),
                "first_half_mb": memory_mb[0],
                "second_half_mb": memory_mb[1],
            }
            print(
                line("serving", results.add("serving", {"videos": videos, "batching": given.batching}, numbers)),
                flush=True,
            )
    results.save(given.json)


@dataclass(frozen=True)
class Measured:
    """What clients got."""

    per_s: float
    """Answers a second."""
    answers: int
    lost: int
    """Questions without an answer."""


def processor_s(process: psutil.Process) -> float:
    """Seconds of the processor that a process has used."""
    used = process.cpu_times()
    return float(used.user + used.system)


def rendered(folder: Path, seconds: float) -> list[bytes]:
    """A few clips of that length."""
    config = SyntheticConfig(seed=5, min_duration_s=seconds, max_duration_s=seconds)
    clips = []
    for number in range(4):
        path = folder / f"{number}.mp4"
        world, _ = clip(config, "val", number)
        encode(draw_pieces(world, config.size), config.size, config.fps, path, crf=config.crf)
        clips.append(path.read_bytes())
    return clips


def bodies(clips: Sequence[bytes], *, new: bool) -> Callable[[], dict[str, Any]]:
    """Makes the bodies of requests. A video is new if its content is: it has an unused box of its own at its end."""
    numbers = itertools.count()

    def body() -> dict[str, Any]:
        number = next(numbers)
        content = clips[number % len(clips)] + b"\0\0\0\x10free" + number.to_bytes(8, "big") if new else clips[0]
        address = f"data:video/mp4;base64,{base64.b64encode(content).decode()}"
        parts = [
            {"type": "video_url", "video_url": {"url": address}},
            {"type": "text", "text": QUESTIONS[number % len(QUESTIONS)]},
        ]
        return {"model": "default", "messages": [{"role": "user", "content": parts}]}

    return body


def measured(url: str, body: Callable[[], dict[str, Any]], clients: int, seconds: float) -> Measured:
    """Answers to so many clients, each of which asks one question after another."""
    outcomes: list[bool] = []
    until_s = time.monotonic() + seconds

    def ask() -> None:
        with httpx.Client(timeout=_ANSWER_S) as client:
            while time.monotonic() < until_s:
                try:
                    reply = client.post(f"{url}/chat/completions", json=body())
                    outcomes.append(reply.status_code == 200 and "spans" in reply.json()["choices"][0]["message"])
                except httpx.HTTPError:
                    outcomes.append(False)

    began_s = time.monotonic()
    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answers = sum(outcomes)
    return Measured(per_s=answers / (time.monotonic() - began_s), answers=answers, lost=outcomes.count(False))


@contextmanager
def served(rows: int, batching: str) -> Iterator[tuple[str, psutil.Process]]:
    """A server at 127.0.0.1."""
    server = [sys.executable, "-m", "mmllm", "serve", "default=default-small", "--port", "0"]
    command = [*server, "--rows", str(rows), "--batching", batching]
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        line = next(line for line in process.stdout if " at http" in line)
        yield line.split(" at ")[1].strip(), psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


if __name__ == "__main__":
    main()
