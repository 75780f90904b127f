"""From answers that come again and again to events, each reported once: what has ended, and on what answers agree.

A model that never learned to say "it does not happen" names some interval each time. But what it makes up moves with
the part of the stream that it sees, and what happened stays where it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from mmllm.times.answers import Span
from mmllm.watch.config import WatchConfig

_SAME = 0.7
"""Answers whose intervals overlap by this share of their union mean one event."""
_REPEATED = 0.5
"""A report that overlaps an earlier one by this share of the shorter is the same event."""
_ANSWERS = 4
"""Among so many of the last answers those that agree are looked for."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that was asked for, and has ended."""

    span: Span
    """In seconds of the stream, as the last answer says."""
    answers: int
    """How many of the last answers say so."""


class EventFinder:
    """The events of one standing question.

    Args:
        config: when an event counts as ended, and how many answers have to agree.
    """

    def __init__(self, config: WatchConfig) -> None:
        self.config = config
        self._answers: deque[list[Span]] = deque(maxlen=max(_ANSWERS, config.agree))
        self._reported: deque[Span] = deque()

    def clear(self) -> None:
        """Forgets what was said so far, because the stream had a gap."""
        self._answers.clear()

    def hear(self, spans: Sequence[Span], seen: Span, *, from_start: bool) -> list[Event]:
        """The events that are new with this answer.

        Args:
            spans: what the model says, in seconds of the stream.
            seen: the part of the stream that it was asked about.
            from_start: whether nothing was before that part; else what begins with it may have begun earlier.
        """
        config = self.config
        edge_s = seen.start_s if from_start else seen.start_s + 1.5 / config.rate
        whole = [span for span in spans if span.start_s >= edge_s]
        self._answers.append(whole)  # those that go on count, too: where an event begins is known before its end
        while self._reported and self._reported[0].end_s < seen.start_s - config.late_s:
            self._reported.popleft()
        events = []
        for span in whole:
            agreeing = sum(_same(span, other) for said in self._answers for other in said)
            since_s = seen.end_s - span.end_s
            if agreeing < config.agree or not config.settle_s <= since_s <= config.late_s:
                continue
            if any(_overlaps(span, reported) for reported in self._reported):
                continue
            self._reported.append(span)
            events.append(Event(span=span, answers=agreeing))
        return events


def _common_s(a: Span, b: Span) -> float:
    return min(a.end_s, b.end_s) - max(a.start_s, b.start_s)


def _same(a: Span, b: Span) -> bool:
    """Whether two answers mean one event."""
    union_s = max(a.end_s, b.end_s) - min(a.start_s, b.start_s)
    return a == b or (union_s > 0 and _common_s(a, b) >= _SAME * union_s)


def _overlaps(span: Span, reported: Span) -> bool:
    """Whether a report would repeat an earlier one."""
    return _common_s(span, reported) > _REPEATED * min(span.length_s, reported.length_s)
