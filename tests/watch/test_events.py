"""Events from answers: what has ended, on what answers agree, each once, in time."""

import random

import pytest

from mmllm.errors import ConfigError
from mmllm.times.answers import Span
from mmllm.watch.config import WatchConfig
from mmllm.watch.events import EventFinder

CONFIG = WatchConfig(settle_s=0.5, agree=2, late_s=2.0, every_s=0.5)
WINDOW_S = 20.0


def heard(finder: EventFinder, said, until_s: float, start_s: float = 0.0):
    """(event, when) for answers `said(now)` each half second."""
    found = []
    now_s = start_s
    while now_s <= until_s:
        seen = Span(max(start_s, now_s - WINDOW_S), now_s)
        events = finder.hear(said(now_s), seen, from_start=seen.start_s == start_s)
        found += [(event, now_s) for event in events]
        now_s += 0.5
    return found


def named_while_seen(*spans: Span):
    """A perfect model: the newest of the events that are in the window, as far as they have come."""

    def said(now_s: float) -> list[Span]:
        begun = [span for span in spans if span.start_s < now_s and span.end_s > now_s - WINDOW_S]
        return [Span(begun[-1].start_s, min(begun[-1].end_s, now_s))] if begun else []

    return said


def test_an_event_is_reported_once_and_in_time():
    spans = (Span(10.0, 14.0), Span(30.2, 36.7), Span(50.0, 52.0))
    found = heard(EventFinder(CONFIG), named_while_seen(*spans), 100.0)
    assert len(found) == 3
    for (event, at_s), span in zip(found, spans, strict=True):
        assert event.span == span
        assert CONFIG.settle_s <= at_s - span.end_s <= CONFIG.late_s


def test_what_goes_on_is_not_reported_before_it_ends():
    assert not heard(EventFinder(CONFIG), named_while_seen(Span(10.0, 1000.0)), 60.0)


def test_answers_that_wander_are_not_reported():
    generator = random.Random(0)

    def said(now_s: float) -> list[Span]:
        start_s = now_s - WINDOW_S * generator.random()
        return [Span(max(0.0, start_s), max(0.0, start_s) + 1.0)]

    assert len(heard(EventFinder(CONFIG), said, 200.0)) < 0.1 * 200

    def edge(now_s: float) -> list[Span]:  # what a model says of a window without the event: its beginning
        return [Span(max(0.0, now_s - WINDOW_S), max(0.0, now_s - WINDOW_S + 3.0))]

    assert not heard(EventFinder(CONFIG), edge, 200.0, start_s=30.0)


def test_what_was_known_is_reported_when_the_answer_goes_elsewhere():
    """Answers name it as long as it goes on, and something else from its end on."""

    def said(now_s: float) -> list[Span]:
        return [Span(30.0, now_s)] if 31.0 <= now_s <= 36.0 else [Span(now_s - 15.0, now_s - 13.0)]

    ((event, at_s),) = heard(EventFinder(CONFIG), said, 50.0, start_s=10.0)
    assert event.span == Span(30.0, 36.0)
    assert 0 < at_s - event.span.end_s <= CONFIG.late_s

    def shorter(now_s: float) -> list[Span]:  # named too shortly to be known
        return [Span(30.0, now_s)] if 34.5 <= now_s <= 36.0 else [Span(now_s - 15.0, now_s - 13.0)]

    assert not heard(EventFinder(CONFIG), shorter, 50.0, start_s=10.0)


def test_one_answer_elsewhere_is_no_end():
    config = WatchConfig(settle_s=0.6, agree=2, late_s=2.0, every_s=0.5)

    def said(now_s: float) -> list[Span]:
        elsewhere = now_s < 30.5 or now_s == 36.0
        return [Span(now_s - 9.0, now_s - 7.0)] if elsewhere else [Span(30.0, min(now_s, 42.0))]

    ((event, _),) = heard(EventFinder(config), said, 46.0, start_s=10.0)
    assert event.span == Span(30.0, 42.0)


def test_what_is_found_too_late_is_not_reported():
    def said(now_s: float) -> list[Span]:
        return [Span(10.0, 14.0)] if 18.0 <= now_s <= 30.0 else []

    assert not heard(EventFinder(CONFIG), said, 40.0)


def test_what_begins_with_the_window_is_reported_only_if_the_stream_begins_there():
    seen = Span(5.0, 15.0)
    for from_start in (True, False):
        finder = EventFinder(CONFIG)
        events = [finder.hear([Span(5.0, 14.0)], seen, from_start=from_start) for _ in range(2)]
        assert len(events[1]) == from_start


def test_overlapping_reports_are_one_and_equal_ones_later_are_others():
    finder = EventFinder(CONFIG)
    shaken = iter([Span(10.0, 14.0), Span(10.2, 13.8), Span(9.6, 14.3), Span(10.1, 14.1), Span(11.0, 14.0)])
    found = [finder.hear([span], Span(0.0, 15.0 + 0.2 * i), from_start=True) for i, span in enumerate(shaken)]
    assert sum(map(len, found)) == 1
    assert len(heard(finder, named_while_seen(Span(40.0, 44.0), Span(45.6, 49.0)), 60.0, start_s=25.0)) == 2


def test_several_events_of_one_answer_are_all_reported():
    finder = EventFinder(CONFIG)
    spans = [Span(2.0, 8.6), Span(3.0, 4.0), Span(9.0, 9.4)]
    for now_s in (9.9, 10.4):
        events = finder.hear(spans, Span(0.0, now_s), from_start=True)
    assert [event.span for event in events] == [spans[0], spans[2]]


def test_after_a_gap_answers_from_before_do_not_count():
    finder = EventFinder(CONFIG)
    finder.hear([Span(10.0, 14.0)], Span(0.0, 15.0), from_start=True)
    finder.clear()
    assert not finder.hear([Span(10.0, 14.0)], Span(0.0, 15.5), from_start=True)


def test_what_is_kept_does_not_grow():
    finder = EventFinder(CONFIG)
    found = kept = 0
    for number in range(2 * 3600 * 2):
        now_s = number / 2
        start_s = now_s // 10 * 10
        said = [Span(start_s, min(now_s, start_s + 4.0))] if now_s > start_s else []
        found += len(finder.hear(said, Span(max(0.0, now_s - WINDOW_S), now_s), from_start=now_s < WINDOW_S))
        kept = max(kept, len(finder._reported) + len(finder._heard))
    assert found == 2 * 360
    assert kept < 20


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"memory": "none"}, "memory"),
        ({"rate": 0.0}, "rate"),
        ({"rate": float("nan")}, "rate"),
        ({"rate": 100.0}, "at most 60"),
        ({"every_s": -1.0}, "every_s"),
        ({"every_s": 1.5}, "ends would be missed"),
        ({"window_s": 1.0}, "4 frames"),
        ({"window_s": float("inf")}, "4 frames"),
        ({"settle_s": 2.0}, "below late_s"),
        ({"late_s": 0.0}, "late_s"),
        ({"agree": 0}, "agree"),
        ({"agree": 99}, "from 1 to 20"),
        ({"gap_s": 0.5}, "longer than the time"),
    ],
)
def test_settings_that_cannot_work_are_refused(values, said):
    with pytest.raises(ConfigError, match=said):
        WatchConfig(**values)


def test_a_gap_is_longer_than_the_time_between_frames():
    assert WatchConfig(rate=0.5, every_s=0.5).gap_s == 6.0
    assert WatchConfig(rate=2.0).gap_s == 2.0
