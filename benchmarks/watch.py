"""A stream of hours through `mmllm watch`: which events are reported in time, memory, latency.

    python benchmarks/watch.py [--hours 2] [--seed 100] [--fps 2] [--questions 1] [--json out.json]

The stream is rendered while it is watched, and goes through a named pipe into a process of its own. Its resident
memory is noted twenty times a second. An event counts as reported in time if a report overlaps it by half of their
union and comes at most 2 s of the stream after its end; a report counts as right if it overlaps an event that much.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.layouts import markdown
from benchmarks.results import Number, Results, command_line, machine, option_parser
from mmllm.evaluation.span_metrics import iou
from mmllm.hub.sources import DEFAULT_SMALL
from mmllm.synthetic.streams import StreamConfig, StreamEvent, SyntheticStream, write_stream
from mmllm.times.answers import Span

HOUR_S = 3600.0
IN_TIME_S = 2.0
"""A report is in time if it comes at most so long after the event has ended."""
_OVERLAP = 0.5


@dataclass(frozen=True, kw_only=True)
class EventScores:
    """Scores of the reports of one question."""

    recall: float
    """Share of the events that were reported in time; 1 without events."""
    precision: float
    """Share of the reports that overlap an event by half of their union; 1 without reports."""
    median_after_s: float
    """Of the right reports, how long after the true end they came; 0 without any."""
    longest_after_s: float


def event_scores(events: Sequence[Span], reports: Sequence[tuple[Span, float]]) -> EventScores:
    """Scores of reports.

    Args:
        events: the true intervals.
        reports: intervals, and when each was reported, in seconds of the stream.
    """
    after_s = {
        (event, report): reported_s - true.end_s
        for event, true in enumerate(events)
        for report, (span, reported_s) in enumerate(reports)
        if iou(true, span) >= _OVERLAP
    }
    in_time = {event for (event, _), late_s in after_s.items() if late_s <= IN_TIME_S}
    right = {report for _, report in after_s}
    return EventScores(
        recall=len(in_time) / len(events) if events else 1.0,
        precision=len(right) / len(reports) if reports else 1.0,
        median_after_s=statistics.median(after_s.values()) if after_s else 0.0,
        longest_after_s=max(after_s.values(), default=0.0),
    )


def watched(
    stream: SyntheticStream, seconds: float, questions: Sequence[str], model: str, options: Sequence[str]
) -> tuple[list[dict[str, Any]], list[tuple[float, int]]]:
    """The lines of `mmllm watch`, and its resident bytes by the seconds of the stream that it has read."""
    asked = [word for question in questions for word in ("--question", question)]
    with tempfile.TemporaryDirectory() as folder:
        pipe = Path(folder) / "stream"
        os.mkfifo(pipe)
        command = [sys.executable, "-m", "mmllm", "watch", str(pipe), "--model", model]
        with subprocess.Popen([*command, *asked, *options], stdout=subprocess.PIPE, text=True) as process:
            writer = threading.Thread(target=_write, args=(stream, seconds, pipe))
            writer.start()
            lines: list[dict[str, Any]] = []
            reader = threading.Thread(target=lambda: lines.extend(map(json.loads, process.stdout or ())))
            reader.start()
            memory = _memory(process, stream, lines)
            writer.join()
            reader.join()
    return lines, memory


def _write(stream: SyntheticStream, seconds: float, pipe: Path) -> None:
    """Writes the stream, until it is over or nobody reads it any more."""
    with suppress(OSError):
        write_stream(stream, seconds, pipe)


def _memory(
    process: subprocess.Popen[str], stream: SyntheticStream, lines: Sequence[dict[str, Any]]
) -> list[tuple[float, int]]:
    """Resident bytes twenty times a second until the last line, by the seconds of the stream that were written.

    Behind its last line a process takes 0.1 GiB once more, as its libraries are taken down.
    """
    measured, watching = [], psutil.Process(process.pid)
    while process.poll() is None and not (lines and lines[-1]["kind"] == "end"):
        try:
            measured.append((stream.drawn / stream.config.fps, watching.memory_info().rss))
        except psutil.Error:
            break
        time.sleep(0.05)
    return measured


def events(results: Results, lines: Sequence[dict[str, Any]], truth: Sequence[StreamEvent]) -> None:
    """A row for each question."""
    for question in dict.fromkeys(event.question for event in truth):
        spans = [Span(*event.span) for event in truth if event.question == question]
        told = [line for line in lines if line["kind"] == "event" and line["question"] == question]
        scores = event_scores(spans, [(Span(line["start_s"], line["end_s"]), line["reported_s"]) for line in told])
        numbers: dict[str, Number] = {
            "events": len(spans),
            "reports": len(told),
            "recall_percent": 100 * scores.recall,
            "precision_percent": 100 * scores.precision,
            "median_after_s": scores.median_after_s,
            "longest_after_s": scores.longest_after_s,
        }
        results.add("watch-events", {"question": question}, numbers)


def memory_row(results: Results, lines: Sequence[dict[str, Any]], memory: Sequence[tuple[float, int]]) -> None:
    """Memory in the first and the second half of the stream, and how fast it was watched."""
    end = lines[-1]
    half_s = end["seconds"] / 2
    # the first tenth is left out: there weights and libraries are loaded
    first = [size for at_s, size in memory if 0.2 * half_s < at_s <= half_s]
    second = [size for at_s, size in memory if at_s > half_s]
    numbers: dict[str, Number] = {
        "hours": end["seconds"] / HOUR_S,
        "first_mib": max(first) / 2**20,
        "second_mib": max(second) / 2**20,
        "growth_percent": 100 * (max(second) / max(first) - 1),
        "rounds": end["rounds"],
        "round_ms": 1000 * end["round_median_s"],
        "round_95_ms": 1000 * end["round_95_percent_s"],
        "real_time": end["times_real_time"],
    }
    results.add("watch-memory", {"stream": f"{end['frames']} frames"}, numbers)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, and prints the tables."""
    parser = option_parser(__doc__)
    parser.add_argument("--hours", type=float, default=2.0, help="length of the stream")
    parser.add_argument("--seed", type=int, default=100, help="of the stream; defaults were chosen on seed 1")
    parser.add_argument("--fps", type=int, default=2, help="frames a second of the stream")
    parser.add_argument("--questions", type=int, default=1, help="how many of the stream's questions are asked")
    parser.add_argument("--model", default=DEFAULT_SMALL, help="folder or hub id of a model")
    parser.add_argument("--idle", type=float, default=60.0, help="seconds after which the stream is over")
    options, others = parser.parse_known_args(arguments)
    stream = SyntheticStream(StreamConfig(seed=options.seed, fps=options.fps))
    seconds, asked = HOUR_S * options.hours, stream.questions[: options.questions]
    results = Results(command_line(__file__, arguments), machine("torch", "transformers", "av"))
    further = ["--idle", str(options.idle), *others]
    lines, memory = watched(stream, seconds, asked, options.model, further)
    watched_s = lines[-1]["seconds"]  # what ends shortly before the stream does cannot be reported any more
    truth = [event for event in stream.events(watched_s - 3.0) if event.question in asked]
    events(results, lines, truth)
    memory_row(results, lines, memory)
    print(*(markdown(table, rows) for table, rows in results.tables.items()), sep="\n\n")
    results.save(options.json)


if __name__ == "__main__":
    main()
