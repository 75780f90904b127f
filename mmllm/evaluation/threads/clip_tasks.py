"""Needles and threads in clips: shapes that are shown for a moment at a depth of the clip.

A needle is an object that is on screen once, for a moment, beside two that are always there: when?

A thread goes through pairs that are shown one after the other:

    top left: the key      top right: its value, which may be the key of another pair

Of one step, it asks which shape is beside a key. Longer ones go on from there: the object on the right is the key of
another pair, shown later (forward) or earlier (backward).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from mmllm.fields import require
from mmllm.synthetic.questions import stamp
from mmllm.synthetic.world import SceneSpan, Thing, World
from mmllm.synthetic.world_sampling import WORLDS

_LEFT, _RIGHT, _BELOW = (0.27, 0.28), (0.73, 0.28), (0.5, 0.74)
_SHOWN, _LONGEST_S = 0.8, 6.0
"""A pair or a needle is shown for this share of its part of the clip, but not longer."""
Name = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class ClipThreadsConfig:
    """What the clips show, and what is asked."""

    seed: int = 0
    clips: int = 4
    """Of each length with a needle at each depth, with all pairs, and with each longer thread."""
    lengths: tuple[float, ...] = (30.0, 60.0, 120.0)
    """Of the clips, in seconds; an hour is the most."""
    pairs: int = 6
    """As many depths: the first pair lies at 0 %, the last at 100 %."""
    steps: tuple[int, ...] = (2, 3, 5)
    """Lengths of longer threads."""
    world: str = "basic"
    """Whose colours and shapes are shown: basic has 4 and 3, which the packaged model knows; full has 6 and 4."""
    fps: int = 5
    size: int = 64

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**32, self, "seed", "from 0 to 2 ** 32 - 1")
        require(1 <= self.clips <= 1000, self, "clips", "from 1 to 1000")
        require(self.world in WORLDS, self, "world", f"one of {', '.join(WORLDS)}")
        names = len(self.names)
        require(2 <= self.pairs <= names // 2, self, "pairs", f"from 2 to {names // 2}: half of the {names} objects")
        require(len(self.lengths) > 0, self, "lengths", "at least one")
        for length_s in self.lengths:
            longest = 2.5 * self.pairs <= length_s <= 3600
            require(longest, self, "lengths", f"from {2.5 * self.pairs:g} s for {self.pairs} pairs to an hour")
        for steps in self.steps:
            require(2 <= steps <= self.pairs, self, "steps", f"from 2 to {self.pairs}, the number of pairs")
        require(1 <= self.fps <= 60, self, "fps", "from 1 to 60 frames a second")
        require(self.size % 2 == 0 and 32 <= self.size <= 1024, self, "size", "even, from 32 to 1024 pixels")

    @property
    def names(self) -> list[Name]:
        """The objects: all colours and shapes of the world."""
        rules = WORLDS[self.world]
        return [(color, shape) for color in rules.colors for shape in rules.shapes]

    @property
    def chance(self) -> float:
        """How often a shape that is drawn without looking is right."""
        return 1 / len(WORLDS[self.world].shapes)


@dataclass(frozen=True, kw_only=True, eq=False)
class ThreadClip:
    """A clip with its questions."""

    name: str
    world: World
    questions: list[dict[str, Any]]
    """As in ActivityNet-RTL's training files: `q`, `a`, and our `family` and `group`."""


def thread_clips(config: ClipThreadsConfig) -> list[ThreadClip]:
    """All clips of a suite."""
    clips = []
    for length_s in config.lengths:
        for number in range(config.clips):
            clips += [_needle(config, length_s, number, place) for place in range(config.pairs)]
            clips.append(_pairs(config, length_s, number))
            clips += [
                _thread(config, length_s, number, steps, backward)
                for steps in config.steps
                for backward in (False, True)
            ]
    return clips


def _group(config: ClipThreadsConfig, length_s: float, place: int) -> str:
    return f"{length_s:g} s, depth {100 * place / (config.pairs - 1):.0f} %"


def _needle(config: ClipThreadsConfig, length_s: float, number: int, place: int) -> ThreadClip:
    """A clip with one needle; its colour is that of no other object."""
    name = f"needle-{length_s:g}-{number}-{place}"
    state = random.Random(f"{config.seed}/{name}")
    rules = WORLDS[config.world]
    needle, *others = [(color, state.choice(rules.shapes)) for color in state.sample(rules.colors, 3)]
    span, whole = _spans(config, length_s)[place], SceneSpan(0.0, round(length_s * config.fps) / config.fps)
    spots = state.sample((_LEFT, _RIGHT, _BELOW), 3)
    things = [
        _thing(object_name, spot, presence, state)
        for object_name, spot, presence in zip((needle, *others), spots, (span, whole, whole), strict=True)
    ]
    shown = " ".join(needle)
    row = {
        "q": f"When is the {shown} on screen?",
        "a": f"{stamp(span.start_s)} {stamp(span.end_s)} The {shown} is on screen.",
        "family": "needle",
        "group": _group(config, length_s, place),
    }
    return ThreadClip(name=name, world=_world(config, length_s, things, state), questions=[row])


def _pairs(config: ClipThreadsConfig, length_s: float, number: int) -> ThreadClip:
    """A clip with a thread of one step at each depth."""
    name = f"pairs-{length_s:g}-{number}"
    state = random.Random(f"{config.seed}/{name}")
    keys, others = _drawn(config, state)
    values = [state.choice(others) for _ in keys]
    questions = [
        {
            "q": f"Which shape is in the top right while the {' '.join(key)} is on screen?",
            "a": value[1],
            "family": "thread of 1",
            "group": _group(config, length_s, place),
        }
        for place, (key, value) in enumerate(zip(keys, values, strict=True))
    ]
    things = _things(config, length_s, keys, values, state)
    return ThreadClip(name=name, world=_world(config, length_s, things, state), questions=questions)


def _thread(config: ClipThreadsConfig, length_s: float, number: int, steps: int, backward: bool) -> ThreadClip:
    """A clip with one thread of several steps."""
    way = "backward" if backward else "forward"
    name = f"thread-{length_s:g}-{number}-{steps}-{way}"
    state = random.Random(f"{config.seed}/{name}")
    keys, others = _drawn(config, state)
    values = [state.choice(others) for _ in keys]
    chain = sorted(state.sample(range(config.pairs), steps), reverse=backward)
    for place, following in pairwise(chain):
        values[place] = keys[following]
    question = (
        f"Two objects are on screen at a time. Start when the {' '.join(keys[chain[0]])} is in the top left. The "
        "object in the top right is in the top left at another time; look there what is in the top right then, and go "
        "on until an object is never in the top left. Which shape is it?"
    )
    row = {
        "q": question,
        "a": values[chain[-1]][1],
        "family": f"thread of {steps}, {way}",
        "group": f"{length_s:g} s, longer threads",
    }
    things = _things(config, length_s, keys, values, state)
    return ThreadClip(name=name, world=_world(config, length_s, things, state), questions=[row])


def _drawn(config: ClipThreadsConfig, state: random.Random) -> tuple[list[Name], list[Name]]:
    """The keys, and the objects that are none."""
    names = state.sample(config.names, len(config.names))
    return names[: config.pairs], names[config.pairs :]


def _spans(config: ClipThreadsConfig, length_s: float) -> list[SceneSpan]:
    """When each pair is shown, in whole frames."""
    part_s = length_s / config.pairs
    shown_s = min(_SHOWN * part_s, _LONGEST_S)
    starts = (part_s * place + (part_s - shown_s) / 2 for place in range(config.pairs))
    rounded = (round(start_s * config.fps) for start_s in starts)
    return [SceneSpan(first / config.fps, (first + round(shown_s * config.fps)) / config.fps) for first in rounded]


def _things(
    config: ClipThreadsConfig, length_s: float, keys: list[Name], values: list[Name], state: random.Random
) -> list[Thing]:
    """The objects of all pairs."""
    return [
        _thing(name, spot, span, state)
        for key, value, span in zip(keys, values, _spans(config, length_s), strict=True)
        for name, spot in ((key, _LEFT), (value, _RIGHT))
    ]


def _thing(name: Name, spot: tuple[float, float], presence: SceneSpan, state: random.Random) -> Thing:
    return Thing(
        color=name[0],
        shape=name[1],
        x=spot[0] + state.uniform(-0.03, 0.03),
        y=spot[1] + state.uniform(-0.03, 0.03),
        radius=state.uniform(0.1, 0.14),
        angle=state.uniform(-0.2, 0.2),
        presence=presence,
        events=(),
    )


def _world(config: ClipThreadsConfig, length_s: float, things: list[Thing], state: random.Random) -> World:
    return World(
        frames=round(length_s * config.fps),
        fps=config.fps,
        things=tuple(things),
        digits=(),
        jitter=0.05,
        noise=state.uniform(1.0, 3.0),
        texture_seed=state.getrandbits(48),
    )
