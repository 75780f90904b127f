"""A stream that has no end: one place where three things do something now and then, and what happens when.

It is drawn act by act, so that a day of it takes no more memory than a minute. Everything follows from the seed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import count
from pathlib import Path

import numpy as np

from mmllm.fields import require
from mmllm.synthetic.drawing import draw_pieces
from mmllm.synthetic.world import SceneEvent, SceneSpan, Thing, World
from mmllm.synthetic.world_sampling import WORLDS

_TURNING, _MOVING, _VISITING = (0.28, 0.28), (0.2, 0.74), (0.72, 0.3)
"""Centres of the thing that turns white, of the one that moves to the right and back, and of the one that comes and
goes; none covers another."""
_RIGHTMOST = 0.8


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """What a stream shows."""

    seed: int = 0
    fps: int = 5
    size: int = 64
    act_s: float = 40.0
    """Length of an act, in which each thing does at most one thing."""
    shortest_s: float = 3.0
    longest_s: float = 8.0
    """Lengths of what happens."""
    share: float = 0.8
    """Of the acts, in how many a thing turns white, and in how many one comes; the one that moves does so in each."""
    pause_s: float = 6.0
    """At the start of an act, in which nothing happens."""

    def __post_init__(self) -> None:
        require(1 <= self.fps <= 60, self, "fps", "from 1 to 60 frames a second")
        require(self.size % 2 == 0 and 32 <= self.size <= 1024, self, "size", "even, from 32 to 1024 pixels")
        require(0 < self.shortest_s <= self.longest_s, self, "shortest_s", "positive, and at most longest_s")
        room = self.act_s - self.pause_s
        require(self.longest_s <= room, self, "longest_s", f"at most {room:g}: it has to fit into an act")
        require(0 <= self.share <= 1, self, "share", "from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class StreamEvent:
    """Something that happens, and the question that asks for it."""

    question: str
    span: SceneSpan
    """In seconds of the stream."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Act:
    """A part of a stream."""

    world: World
    events: tuple[StreamEvent, ...]
    """In order of their ends."""


class SyntheticStream:
    """The acts of a stream: one thing turns white, one moves to the right and back, one comes and goes.

    Args:
        config: what it shows.
    """

    def __init__(self, config: StreamConfig) -> None:
        self.config = config
        state = random.Random(f"{config.seed}/stream")
        rules = WORLDS["basic"]
        colors, shapes = state.sample(rules.colors, 3), state.sample(rules.shapes, 3)
        self._radii = [state.uniform(0.1, 0.14) for _ in colors]
        self._names = list(zip(colors, shapes, strict=True))
        self.drawn = 0
        """Frames that `frames` has given, for those who watch its progress."""
        self._texture, self._noise = state.getrandbits(48), state.uniform(1.0, 3.0)

    @property
    def questions(self) -> list[str]:
        """The standing questions: about turning white, moving right, moving left, and being on screen."""
        turning, moving, visiting = (" ".join(name) for name in self._names)
        return [
            f"When does the {turning} turn white?",
            f"When does the {moving} move right?",
            f"When does the {moving} move left?",
            f"When is the {visiting} on screen?",
        ]

    def act(self, number: int) -> Act:
        """An act by its number."""
        config = self.config
        state = random.Random(f"{config.seed}/stream/{number}")
        frames = round(config.act_s * config.fps)
        spans = [self._span(state, frames) for _ in self._names]
        happens = [state.random() < config.share for _ in self._names]
        # the thing that moves does so in each act, so that where it begins follows from the act's number
        back, (x, y) = number % 2, _MOVING
        whole, reach = SceneSpan(0.0, frames / config.fps), _RIGHTMOST - x
        white = (SceneEvent(action="white", span=spans[0], amount=0.0),) if happens[0] else ()
        move = SceneEvent(action="left" if back else "right", span=spans[1], amount=reach)
        visitor = tuple(centre + state.uniform(-0.04, 0.04) for centre in _VISITING)
        things = [
            self._thing(0, _TURNING, whole, white),
            self._thing(1, (x + reach * back, y), whole, (move,)),
            *([self._thing(2, visitor, spans[2], ())] if happens[2] else []),
        ]
        white_question, *moves, visible = self.questions
        happened = [
            *([(white_question, spans[0])] if happens[0] else []),
            (moves[back], spans[1]),
            *([(visible, spans[2])] if happens[2] else []),
        ]
        start_s = number * frames / config.fps
        events = [
            StreamEvent(question=question, span=SceneSpan(start_s + span.start_s, start_s + span.end_s))
            for question, span in happened
        ]
        world = World(
            frames=frames,
            fps=config.fps,
            things=tuple(things),
            digits=(),
            jitter=0.05,
            noise=self._noise,
            texture_seed=self._texture,
        )
        return Act(world=world, events=tuple(sorted(events, key=lambda event: event.span.end_s)))

    def _thing(
        self, number: int, place: tuple[float, ...], presence: SceneSpan, events: tuple[SceneEvent, ...]
    ) -> Thing:
        color, shape = self._names[number]
        return Thing(
            color=color,
            shape=shape,
            x=place[0],
            y=place[1],
            radius=self._radii[number],
            angle=0.1,
            presence=presence,
            events=events,
        )

    def frames(self, seconds: float) -> Iterator[np.ndarray]:
        """Its frames up to an instant, each uint8 (S S 3)."""
        left = round(seconds * self.config.fps)
        for number in count():
            for piece in draw_pieces(self.act(number).world, self.config.size):
                for frame in piece[:left]:
                    self.drawn += 1
                    yield frame
                left -= len(piece)
                if left <= 0:
                    return

    def events(self, seconds: float) -> list[StreamEvent]:
        """What has ended before an instant, in order of the ends."""
        acts = int(seconds / self.config.act_s) + 1
        every = [event for number in range(acts) for event in self.act(number).events]
        return [event for event in every if event.span.end_s < seconds]

    def _span(self, state: random.Random, frames: int) -> SceneSpan:
        fps = self.config.fps
        length = round(state.uniform(self.config.shortest_s, self.config.longest_s) * fps)
        first = round(self.config.pause_s * fps)
        start = state.randint(first, frames - length)
        return SceneSpan(start / fps, (start + length) / fps)


def write_stream(stream: SyntheticStream, seconds: float, path: Path) -> None:
    """Writes a stream as MPEG-TS, which can be read while it grows, into a file or a named pipe."""
    import av

    config = stream.config
    options = {"preset": "veryfast", "tune": "zerolatency", "crf": "23", "g": str(5 * config.fps)}
    with av.open(str(path), "w", format="mpegts") as container:
        track = container.add_stream("libx264", rate=config.fps, options=options)
        track.height = track.width = config.size
        track.pix_fmt, track.codec_context.thread_count = "yuv420p", 1
        for number, frame in enumerate(stream.frames(seconds)):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = number, Fraction(1, config.fps)
            container.mux(track.encode(picture))
        container.mux(track.encode())
