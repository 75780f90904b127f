"""Follows a stream and asks standing questions about it, in memory that does not grow.

frames -> memory -> a round of questions each half second -> events, each reported once
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

from mmllm.errors import InputError
from mmllm.video.live.frame import LiveFrame
from mmllm.watch.config import WatchConfig
from mmllm.watch.events import EventFinder
from mmllm.watch.memory import StreamMemory
from mmllm.watch.records import Figures, Record, gap_record


class Watcher:
    """Standing questions about one stream.

    Args:
        memory: what is remembered of it.
        questions: in words.
        config: how often they are asked, and when an event is reported.

    Raises:
        InputError: if there is no question, or one is empty or there twice.
    """

    def __init__(self, memory: StreamMemory, questions: Sequence[str], config: WatchConfig) -> None:
        require_questions(questions)
        self.memory, self.questions, self.config = memory, list(questions), config
        self.finders = [EventFinder(config) for _ in questions]
        self.figures = Figures()
        self._begin_s = self._next_s = 0.0

    def watch(self, frames: Iterable[LiveFrame]) -> Iterator[Record]:
        """The events and gaps of a stream as they come."""
        for frame in frames:
            started = time.perf_counter()
            if frame.gap is not None:
                self._forget(frame.time_s)
                yield gap_record(frame.gap)
            self.memory.add(frame.pixels, frame.time_s)
            self.figures.frames += 1
            self.figures.last_s = frame.time_s
            found = self._round(frame) if frame.time_s >= self._next_s - 1e-6 else []
            self.figures.seconds += time.perf_counter() - started
            yield from found

    def _forget(self, time_s: float) -> None:
        """Begins again behind a gap."""
        self.memory.clear()
        for finder in self.finders:
            finder.clear()
        self.figures.gaps += 1
        self._begin_s = self._next_s = time_s

    def _round(self, frame: LiveFrame) -> list[Record]:
        """Asks all questions about what is remembered; the lines of new events."""
        seen = self.memory.seen
        if seen is None:
            return []
        self._next_s = max(self._next_s + self.config.every_s, frame.time_s + 0.5 * self.config.every_s)
        from_start = seen.start_s <= self._begin_s + 1e-6
        records = []
        answers = self.memory.ask(self.questions)
        behind_s = time.monotonic() - frame.arrived_s
        for question, finder, answer in zip(self.questions, self.finders, answers, strict=True):
            for event in finder.hear(answer.spans, seen, from_start=from_start):
                self.figures.events += 1
                values = {
                    "question": question,
                    "start_s": event.span.start_s,
                    "end_s": event.span.end_s,
                    "text": answer.text,
                    "answers": event.answers,
                    "reported_s": seen.end_s,
                    "after_end_s": seen.end_s - event.span.end_s,
                    "behind_s": behind_s,
                }
                records.append(Record(kind="event", values=values))
        self.figures.rounds += 1
        self.figures.rounds_s.append(behind_s)
        return records


def require_questions(questions: Sequence[str]) -> None:
    """Refuses questions that cannot be asked.

    Raises:
        InputError: if there is none, or one is empty or there twice.
    """
    if not questions or not all(question.strip() for question in questions):
        raise InputError('a stream needs questions, such as --question "When does the red circle spin?", none empty')
    if len(set(questions)) < len(questions):
        raise InputError("a question is there twice: ask each once")
