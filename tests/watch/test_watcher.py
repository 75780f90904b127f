"""A stream is watched: rounds, gaps, records, a day of it, and the sliding window with a model."""

import gc
import itertools
import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch

from mmllm.errors import InputError
from mmllm.hub.sources import DEFAULT
from mmllm.inference.answering import VideoQA
from mmllm.synthetic.streams import StreamConfig, SyntheticStream
from mmllm.times.answers import Answer, Span
from mmllm.tokens import VideoClip
from mmllm.video.live.clock import Gap
from mmllm.video.live.frame import LiveFrame
from mmllm.watch.config import WatchConfig
from mmllm.watch.memory import SlidingWindow, moved
from mmllm.watch.recent_frames import RecentFrames
from mmllm.watch.watcher import Watcher

PICTURE = np.zeros((4, 4, 3), dtype=np.uint8)


class Remembered:
    """A memory that knows what happens, and names the newest of it that has begun."""

    def __init__(self, events: list[Span], window_s: float = 20.0) -> None:
        self.events, self.window_s = events, window_s
        self.times_s: list[float] = []
        self.asked_at_s: list[float] = []

    def add(self, pixels, time_s):
        self.times_s = [*self.times_s[-60:], time_s]

    def clear(self):
        self.times_s = []

    @property
    def seen(self):
        if len(self.times_s) < 4:
            return None
        return Span(max(self.times_s[0], self.times_s[-1] - self.window_s), self.times_s[-1])

    def ask(self, questions):
        now_s = self.times_s[-1]
        self.asked_at_s = [*self.asked_at_s[-100:], now_s]
        begun = [span for span in self.events if span.start_s < now_s and span.end_s > now_s - self.window_s]
        spans = (Span(begun[-1].start_s, min(begun[-1].end_s, now_s)),) if begun else ()
        return [Answer(text="it does.", spans=spans, raw="", fallback=False) for _ in questions]


def frames(times_s, gaps=None):
    for time_s in map(float, times_s):
        yield LiveFrame(pixels=PICTURE, time_s=time_s, arrived_s=0.0, gap=(gaps or {}).get(time_s))


def test_each_question_gets_each_event_as_a_line_of_json():
    memory = Remembered([Span(10.0, 14.0), Span(30.0, 33.0)])
    watcher = Watcher(memory, ["When does it spin?", "When does it grow?"], WatchConfig())
    records = [record.to_json() for record in watcher.watch(frames(np.arange(0, 60, 0.5)))]
    assert [(record["question"], record["start_s"]) for record in records] == [
        (question, start_s) for start_s in (10.0, 30.0) for question in watcher.questions
    ]
    for record in map(json.dumps, records):
        assert '"kind": "event"' in record
    assert all(0.5 <= record["after_end_s"] <= 2.0 for record in records)
    assert all(record["reported_s"] - record["end_s"] == pytest.approx(record["after_end_s"]) for record in records)
    end = watcher.figures.record("the stream is over").to_json()
    assert (end["frames"], end["events"], end["gaps"], end["seconds"]) == (120, 4, 0, 59.5)
    assert end["round_median_s"] <= end["round_95_percent_s"] <= end["round_longest_s"]


def test_rounds_follow_the_stream_not_its_frames():
    memory = Remembered([])
    watcher = Watcher(memory, ["When?"], WatchConfig(rate=10.0, every_s=0.5))
    list(watcher.watch(frames(np.arange(0, 30, 0.1))))
    assert np.diff(memory.asked_at_s)[1:] == pytest.approx(0.5, abs=0.11)
    assert watcher.figures.rounds == pytest.approx(60, abs=3)


def test_a_gap_is_told_and_the_watch_goes_on_with_the_clock_kept():
    gap = Gap(start_s=20.0, end_s=50.0, measured=True)
    memory = Remembered([Span(12.0, 19.5), Span(60.0, 64.0)])
    watcher = Watcher(memory, ["When?"], WatchConfig())
    times_s = [*np.arange(0, 20.5, 0.5), *np.arange(50, 80, 0.5)]
    records = [record.to_json() for record in watcher.watch(frames(times_s, {50.0: gap}))]
    assert records[0] == {"kind": "gap", "start_s": 20.0, "end_s": 50.0, "by": "the stream's clock"}
    assert [record["start_s"] for record in records[1:]] == [60.0]
    assert watcher.figures.gaps == 1


def test_a_day_is_watched_in_memory_that_does_not_grow():
    events = (Span(10.0 * number + 2.0, 10.0 * number + 5.0) for number in itertools.count())
    nearby = [next(events) for _ in range(4)]
    memory = Remembered(nearby)

    def day():
        for second in range(24 * 3600):
            if second > nearby[-1].start_s - 1:
                nearby.append(next(events))
                del nearby[:-4]
            yield from frames([float(second)])

    watcher = Watcher(memory, ["When?"], WatchConfig(rate=1.0, every_s=1.0, gap_s=3.0))
    found = 0
    for number, record in enumerate(watcher.watch(day())):
        assert record.values["start_s"] == 10.0 * number + 2.0
        found += 1
    assert found == 8640
    assert len(watcher.figures.rounds_s) == 2000


def held_bytes() -> int:
    """Bytes of all tensors that are alive, and of what Python and numpy have allocated since tracing began."""
    gc.collect()
    storages = {
        held.untyped_storage().data_ptr(): held.untyped_storage().nbytes()
        for held in gc.get_objects()
        if type(held) in (torch.Tensor, torch.nn.Parameter)  # others, such as fake ones, have no storage
        and (held.device.type, held.layout) == ("cpu", torch.strided)
    }
    return sum(storages.values()) + tracemalloc.get_traced_memory()[0]


def test_what_is_held_does_not_grow_with_the_stream(qa, stream):
    """A frame's pixels have 12 KiB, its features more, the LLM's cache of a window 150: none of them may stay."""
    config = WatchConfig(window_s=8.0)
    watcher, held = Watcher(SlidingWindow(qa, config), stream.questions[:2], config), {}
    pictures = enumerate(itertools.islice(stream.frames(1000), 120))
    tracemalloc.start()
    try:
        taken = (LiveFrame(pixels=picture, time_s=number / 2, arrived_s=0.0) for number, picture in pictures)
        for frame in taken:
            list(watcher.watch([frame]))
            if watcher.figures.frames in (40, 80, 120):
                held[watcher.figures.frames] = held_bytes()
    finally:
        tracemalloc.stop()
    assert watcher.figures.rounds > 100
    assert held[120] - held[80] < 100 * 1024, held


@pytest.mark.parametrize("questions", [[], [""], ["When?", "  "], ["When?", "When?"]])
def test_questions_that_cannot_be_asked_are_refused(questions):
    with pytest.raises(InputError):
        Watcher(Remembered([]), questions, WatchConfig())


def test_an_answer_without_a_time_names_no_event():
    answer = Answer(text="yes", spans=(Span(0.0, 25.0),), raw="yes", fallback=True)
    assert moved(answer, 100.0).spans == ()
    assert moved(replace(answer, fallback=False), 100.0).spans == (Span(100.0, 125.0),)


@pytest.fixture(scope="module")
def qa():
    qa = VideoQA.from_pretrained(DEFAULT)
    qa.max_new_tokens = 16
    return qa


@pytest.fixture(scope="module")
def stream():
    return SyntheticStream(StreamConfig(seed=5))


def recent(qa, stream, count, seconds):
    kept = RecentFrames(qa, count, 5.0)
    pictures = list(stream.frames(seconds))
    for number, picture in enumerate(pictures):
        kept.add(picture, number / 5)
    return kept, pictures


def test_features_of_a_frame_are_those_of_the_whole_stream_and_computed_once(qa, stream):
    kept, pictures = recent(qa, stream, 20, 10)
    clip = VideoClip(frames=np.stack(pictures), times_s=np.arange(50) / 5, duration_s=10.0)
    whole = qa.encode_video(clip).tokens.features
    torch.testing.assert_close(kept.video().tokens.features, whole[:, 30:], rtol=1e-4, atol=1e-4)
    assert kept.encoded_frames == 50 + 49  # once more each, when its neighbour has come: this encoder has a reach of 1
    assert len(kept) == 20
    assert kept.start_s == pytest.approx(6.0)


def test_a_window_that_holds_everything_is_the_clip(qa, stream):
    kept, pictures = recent(qa, stream, 50, 10)
    clip = VideoClip(frames=np.stack(pictures), times_s=np.arange(50) / 5, duration_s=10.0)
    questions = stream.questions
    assert qa.ask_all(kept.video(), questions) == qa.ask_all(qa.encode_video(clip), questions)
    kept.clear()
    assert len(kept) == 0


def test_other_reducers_and_paths_work_in_a_window(qa, stream):
    other = qa.with_stages(reducers=["fastervlm:keep=4", "fastv:layer=1,ratio=0.5"])
    kept, pictures = recent(other, stream, 20, 4)
    clip = VideoClip(frames=np.stack(pictures), times_s=np.arange(20) / 5, duration_s=4.0)
    assert other.ask_all(kept.video(), ["When?"]) == other.ask_all(other.encode_video(clip), ["When?"])


def test_an_event_of_a_rendered_stream_is_reported_in_absolute_seconds(qa, stream):
    config = WatchConfig()
    watcher = Watcher(SlidingWindow(qa, config), stream.questions, config)
    pictures = enumerate(stream.frames(40))
    taken = (
        LiveFrame(pixels=picture, time_s=number / 5, arrived_s=0.0)
        for number, picture in pictures
        if number % 5 in (0, 3) and number >= 100
    )
    records = [record.values for record in watcher.watch(taken)]
    true = next(event for event in stream.events(38) if "white" in event.question)
    (found,) = [record for record in records if record["question"] == true.question]
    assert (found["start_s"], found["end_s"]) == pytest.approx(true.span, abs=1.0)
    assert found["reported_s"] <= true.span.end_s + 2.0
