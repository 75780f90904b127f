"""A stream without an end: the same each time, and what it shows is what it says."""

import av
import numpy as np
import pytest

from mmllm.errors import ConfigError
from mmllm.synthetic.streams import StreamConfig, SyntheticStream, write_stream
from mmllm.synthetic.world import COLORS

STREAM = SyntheticStream(StreamConfig(seed=3))


def test_a_stream_follows_from_its_seed():
    frames = [np.stack(list(SyntheticStream(StreamConfig(seed=seed)).frames(3))) for seed in (3, 3, 4)]
    assert np.array_equal(frames[0], frames[1])
    assert not np.array_equal(frames[0], frames[2])
    assert frames[0].shape == (15, 64, 64, 3)


def test_events_are_what_the_worlds_of_the_acts_show():
    white, right, left, visible = STREAM.questions
    for number in range(8):
        act = STREAM.act(number)
        told = {event.question: event.span for event in act.events}
        start_s = 40.0 * number
        turning, moving, *visitor = act.world.things
        for question, events in ((white, turning.events), (left if number % 2 else right, moving.events)):
            shown = [(start_s + event.span.start_s, start_s + event.span.end_s) for event in events]
            assert shown == ([told[question]] if question in told else [])
        assert (visible in told) == bool(visitor)
        if visitor:
            assert told[visible].start_s - start_s == pytest.approx(visitor[0].presence.start_s)
    assert len({thing.color for thing in STREAM.act(0).world.things} & set(COLORS)) >= 2


def test_the_thing_that_moves_begins_where_it_has_ended():
    for number in range(4):
        before, after = STREAM.act(number).world.things[1], STREAM.act(number + 1).world.things[1]
        (move,) = before.events
        ended = before.x + move.amount * (1 if move.action == "right" else -1)
        assert after.x == pytest.approx(ended)


def test_events_before_an_instant_are_in_order():
    events = STREAM.events(200.0)
    ends = [event.span.end_s for event in events]
    assert ends == sorted(ends)
    assert ends[-1] < 200.0
    assert len(STREAM.events(400.0)) > len(events)


def test_a_written_stream_has_all_frames_at_its_rate(tmp_path):
    write_stream(SyntheticStream(StreamConfig(seed=3, fps=2)), 5, tmp_path / "s.ts")
    with av.open(str(tmp_path / "s.ts")) as container:
        times_s = [frame.time for frame in container.decode(video=0)]
    assert np.diff(times_s) == pytest.approx(0.5)
    assert len(times_s) == 10


@pytest.mark.parametrize(
    "values",
    [{"fps": 0}, {"size": 63}, {"shortest_s": 0.0}, {"shortest_s": 9.0}, {"longest_s": 50.0}, {"share": 1.5}],
)
def test_streams_that_cannot_be_drawn_are_refused(values):
    with pytest.raises(ConfigError):
        StreamConfig(**values)
