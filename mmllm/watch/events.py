"""From answers that come again and again to events, each reported once: what has ended, and on what answers agree.

A model that never learned to say "it does not happen" names some interval each time. But what it makes up moves with
the part of the stream that it sees, and what happened stays where it is.

    it begins          it goes on: answers end at the newest frame          it is over
    |-----------------------------------------------------------------------|---------| report
                       from one beginning on, for long enough: known         answers agree that it is over,
                                                                             or have left what was known
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from mmllm.times.answers import Span
from mmllm.watch.config import ANSWERS, WatchConfig

_SAME = 0.7
"""Answers whose intervals overlap by this share of their union mean one event."""
_REPEATED = 0.5
"""A report that overlaps an earlier one by this share of the shorter is the same event."""
_KNOWN_S = 2.5
"""What answers have named for so long without a break, while it went on, is known."""
_SAME_START_S = 0.75
"""Answers whose beginnings are at most so far apart mean one event that goes on."""
_AT_EDGE_S = 1.0
"""An answer that ends at most so long before the newest frame says that the event goes on."""


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
        assert config.agree is not None
        self._agree, self._looked_at = config.agree, max(ANSWERS, config.agree)
        self._heard: deque[tuple[float, list[Span]]] = deque()
        """The last answers, each with the newest frame that it was given about."""
        self._reported: deque[Span] = deque()
        self._known: tuple[Event, float] | None = None
        """What is known, as the last answer says that it goes on, and the newest frame of that answer."""

    def clear(self) -> None:
        """Forgets what was said so far, because the stream had a gap."""
        self._heard.clear()
        self._known = None

    def hear(self, spans: Sequence[Span], seen: Span, *, from_start: bool) -> list[Event]:
        """The events that are new with this answer.

        Args:
            spans: what the model says, in seconds of the stream.
            seen: the part of the stream that it was asked about.
            from_start: whether nothing was before that part; else what begins with it may have begun earlier.
        """
        if not spans:  # an answer without a time says nothing of any event
            return []
        edge_s = seen.start_s if from_start else seen.start_s + 1.5 / self.config.rate
        whole = [span for span in spans if span.start_s >= edge_s]
        self._heard.append((seen.end_s, whole))
        self._forget(seen)
        last = [other for _, said in list(self._heard)[-self._looked_at :] for other in said]
        events = [Event(span=span, answers=sum(_same(span, other) for other in last)) for span in whole]
        over = [event for event in events if self._is_over(event, seen.end_s)]
        self._note_known(whole, seen.end_s)
        if self._known is not None and self._known[0].span.start_s < edge_s:
            self._known = None  # its beginning has left what is seen: no answer can name it
        if self._known is not None and self._is_lost(whole, seen.end_s):
            over.append(self._known[0])
            self._known = None
        return [event for event in over if self._is_new(event)]

    def _forget(self, seen: Span) -> None:
        """Forgets what has no bearing on later answers."""
        while len(self._heard) > self._looked_at and self._heard[1][0] <= seen.end_s - _KNOWN_S:
            self._heard.popleft()
        while self._reported and self._reported[0].end_s < seen.start_s - self.config.late_s:
            self._reported.popleft()
        if self._known is not None and seen.end_s - self._known[1] > self.config.late_s:
            self._known = None

    def _is_over(self, event: Event, now_s: float) -> bool:
        """Whether an event has ended, and is to be reported."""
        is_behind = self.config.settle_s <= now_s - event.span.end_s <= self.config.late_s
        return is_behind and event.answers >= self._agree

    def _note_known(self, whole: Sequence[Span], now_s: float) -> None:
        """Notes what this answer and those before it say: that it goes on, from one beginning on."""
        for span in whole:
            if now_s - span.end_s >= self.config.settle_s:
                continue
            since_s, answers = now_s, 0
            for at_s, said in reversed(self._heard):
                if not any(_same_start(span, other) and at_s - other.end_s < _AT_EDGE_S for other in said):
                    break
                since_s, answers = at_s, answers + 1
            if now_s - since_s >= _KNOWN_S and answers >= self._agree:
                self._known = Event(span=span, answers=answers), now_s

    def _is_lost(self, whole: Sequence[Span], now_s: float) -> bool:
        """Whether answers have left what is known, which the last one said to go on."""
        assert self._known is not None
        event, at_s = self._known
        elsewhere = all(_common_s(span, event.span) <= 0 for span in whole)
        return elsewhere and now_s - at_s >= self.config.settle_s

    def _is_new(self, event: Event) -> bool:
        """Whether an event has not been reported before; it is from now on."""
        if any(_overlaps(event.span, reported) for reported in self._reported):
            return False
        self._reported.append(event.span)
        return True


def _common_s(a: Span, b: Span) -> float:
    return min(a.end_s, b.end_s) - max(a.start_s, b.start_s)


def _same(a: Span, b: Span) -> bool:
    """Whether two answers mean one event."""
    union_s = max(a.end_s, b.end_s) - min(a.start_s, b.start_s)
    return a == b or (union_s > 0 and _common_s(a, b) >= _SAME * union_s)


def _same_start(a: Span, b: Span) -> bool:
    """Whether two answers mean one event, of which the end is not known yet."""
    return abs(a.start_s - b.start_s) <= _SAME_START_S


def _overlaps(span: Span, reported: Span) -> bool:
    """Whether a report would repeat an earlier one."""
    return _common_s(span, reported) > _REPEATED * min(span.length_s, reported.length_s)
