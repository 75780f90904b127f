"""Questions about a world and their answers. Each is checked against the world, so that it has only one answer.

Time questions are answered as in ActivityNet-RTL: the interval as "<12.4> <30.0>", then a sentence that explains it.
Spatial questions are answered with one word. All texts use a small closed vocabulary.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations

import numpy as np

from mmllm.synthetic.world import (
    COLORS,
    LONGEST_FRACTION,
    REGIONS,
    SHAPES,
    SHORTEST_FRACTION,
    SHORTEST_S,
    SOUNDS,
    SceneEvent,
    SceneSpan,
    Thing,
    World,
    camera,
    state,
)

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_DOES = {
    "left": ("move left", "moves left"),
    "right": ("move right", "moves right"),
    "up": ("move up", "moves up"),
    "down": ("move down", "moves down"),
    "spin": ("spin", "spins"),
    "grow": ("grow", "grows"),
    "shrink": ("shrink", "shrinks"),
    "blink": ("blink", "blinks"),
    "white": ("turn white", "turns white"),
    "bounce": ("bounce", "bounces"),
}
_TEMPLATES = """
When does the? Which object and when? What happens next after the while the? When is the on screen.
When are at least objects on screen? The object that later first before it after it. At least objects are on screen.
Which shape is in the while? Which digit is shown in the? Which digit is shown while?
"""
_WORD = re.compile(r"<[0-9.]+>|[a-z]+|[^\sa-z]")
_BORDER = 4.5 / 64
"""A thing is clearly in a region if its centre is at least so far from the middle lines, in sides of the frame."""


@dataclass(frozen=True, kw_only=True)
class ClipQuestion:
    """A question about a clip, with its only answer."""

    question: str
    answer: str
    family: str
    span: SceneSpan | None
    """The interval in the answer; None for spatial questions."""


@dataclass(frozen=True, kw_only=True)
class ClipContent:
    """What can be asked about: a world, and its events."""

    world: World
    events: list[tuple[Thing, SceneEvent]]
    """All events, each with the thing that does it."""


def stamp(time_s: float) -> str:
    """A time as written in answers: "<12.4>", with a second decimal only if the frame rate needs it."""
    text = f"{time_s:.2f}"
    return f"<{text[:-1] if text.endswith('0') else text}>"


def words(text: str) -> list[str]:
    """The words, punctuation marks and time stamps of a question or an answer, in lower case."""
    return _WORD.findall(text.lower())


def vocabulary() -> list[str]:
    """All words and punctuation marks of questions and answers about pictures, in lower case and sorted.

    Time stamps such as "<12.4>" are not words.
    """
    phrases = [_TEMPLATES, *COLORS, *SHAPES, *REGIONS, *NUMBERS, *(form for pair in _DOES.values() for form in pair)]
    return sorted({word for phrase in phrases for word in words(phrase)})


def sound_vocabulary() -> list[str]:
    """The words of questions about sound that no other question has, in lower case and sorted.

    They are apart from `vocabulary`, so that models without sound keep their vocabulary.
    """
    phrases = ["When is the heard? The is heard.", *SOUNDS]
    return sorted({word for phrase in phrases for word in words(phrase)} - set(vocabulary()))


def ask(
    world: World, random_state: random.Random, families: Sequence[str], count: int
) -> tuple[list[ClipQuestion], Counter[str]]:
    """Up to `count` different questions, drawn evenly from `families`, and the number of possible questions of each."""
    content = ClipContent(world=world, events=[(thing, event) for thing in world.things for event in thing.events])
    pools = {family: list(FAMILIES[family](content)) for family in families}
    pool_sizes = Counter({family: len(pool) for family, pool in pools.items()})
    for pool in pools.values():
        random_state.shuffle(pool)
    questions: list[ClipQuestion] = []
    while len(questions) < count and any(pools.values()):
        open_families = [family for family, pool in pools.items() if pool]
        random_state.shuffle(open_families)
        questions += [pools[family].pop() for family in open_families[: count - len(questions)]]
    return questions, pool_sizes


def _answerable(world: World, span: SceneSpan | None) -> bool:
    """Whether an interval is long and short enough to be asked for."""
    if span is None:
        return False
    fraction = span.length_s / world.duration_s
    return span.length_s >= SHORTEST_S - 1e-6 and SHORTEST_FRACTION - 1e-6 <= fraction <= LONGEST_FRACTION + 1e-6


def _timed(family: str, question: str, span: SceneSpan, sentence: str) -> ClipQuestion:
    """A time question; its answer is the interval and the sentence."""
    sentence = f"{sentence[0].upper()}{sentence[1:]}."
    answer = f"{stamp(span.start_s)} {stamp(span.end_s)} {sentence}"
    return ClipQuestion(question=question, answer=answer, family=family, span=span)


def _does(event: SceneEvent) -> str:
    """The verb of an event, such as "spins"."""
    return _DOES[event.action][1]


def _direct(content: ClipContent) -> Iterator[ClipQuestion]:
    """When does the red circle spin?"""
    for thing, event in content.events:
        question = f"When does the {thing.name} {_DOES[event.action][0]}?"
        yield _timed("direct", question, event.span, f"the {thing.name} {_does(event)}")


def _something(content: ClipContent) -> Iterator[ClipQuestion]:
    """Which object spins and when?"""
    times = Counter(event.action for _, event in content.events)
    for thing, event in content.events:
        if times[event.action] == 1:
            question = f"Which object {_does(event)} and when?"
            yield _timed("something", question, event.span, f"the {thing.name} {_does(event)}")


def _relation(content: ClipContent) -> Iterator[ClipQuestion]:
    """When does the object that later blinks spin?"""
    pairs = [
        (thing, early, late)
        for thing in content.world.things
        for early, late in permutations(thing.events, 2)
        if early.span.end_s <= late.span.start_s
    ]
    times = Counter((early.action, late.action) for _, early, late in pairs)
    for thing, early, late in pairs:
        if times[early.action, late.action] == 1:
            question = f"When does the object that later {_does(late)} {_DOES[early.action][0]}?"
            yield _timed("relation", question, early.span, f"the {thing.name} {_does(early)} before it {_does(late)}")
            question = f"When does the object that first {_does(early)} {_DOES[late.action][0]}?"
            yield _timed("relation", question, late.span, f"the {thing.name} {_does(late)} after it {_does(early)}")


def _next(content: ClipContent) -> Iterator[ClipQuestion]:
    """What happens next after the red circle spins?

    Asked only if nothing else starts while the red circle spins, so that the meaning of "after" is clear, and if the
    next event starts at least a second before all others that follow.
    """
    ordered = sorted(content.events, key=lambda thing_and_event: thing_and_event[1].span)
    for (thing, event), (next_thing, next_event) in pairwise(ordered):
        starts = [later.span.start_s for _, later in ordered if later.span.start_s >= next_event.span.start_s]
        clearly_next = len(starts) == 1 or starts[1] - starts[0] >= 1.0
        if clearly_next and next_event.span.start_s >= event.span.end_s:
            question = f"What happens next after the {thing.name} {_does(event)}?"
            yield _timed("next", question, next_event.span, f"the {next_thing.name} {_does(next_event)}")


def _overlap(content: ClipContent) -> Iterator[ClipQuestion]:
    """When does the red circle spin while the blue square grows?"""
    for (thing, event), (other, meanwhile) in permutations(content.events, 2):
        span = event.span.overlap(meanwhile.span)
        if span is not None and thing is not other and _answerable(content.world, span):
            question = f"When does the {thing.name} {_DOES[event.action][0]} while the {other.name} {_does(meanwhile)}?"
            sentence = f"the {thing.name} {_does(event)} while the {other.name} {_does(meanwhile)}"
            yield _timed("overlap", question, span, sentence)


def _visible(content: ClipContent) -> Iterator[ClipQuestion]:
    """When is the red circle on screen?"""
    for thing in content.world.things:
        if _answerable(content.world, thing.presence):
            question = f"When is the {thing.name} on screen?"
            yield _timed("visible", question, thing.presence, f"the {thing.name} is on screen")


def _crowded(content: ClipContent) -> Iterator[ClipQuestion]:
    """When are at least three objects on screen?"""
    world = content.world
    times_s = np.arange(world.frames) / world.fps
    visible_things = np.zeros(world.frames, dtype=np.int64)
    for thing in world.things:
        visible_things += (times_s >= thing.presence.start_s) & (times_s < thing.presence.end_s)
    for number in range(2, len(world.things) + 1):
        frames = np.flatnonzero(visible_things >= number)
        if len(frames) and frames[-1] - frames[0] + 1 == len(frames):
            span = SceneSpan(int(frames[0]) / world.fps, (int(frames[-1]) + 1) / world.fps)
            if _answerable(world, span):
                crowd = f"at least {NUMBERS[number]} objects"
                yield _timed("crowded", f"When are {crowd} on screen?", span, f"{crowd} are on screen")


def _clauses(content: ClipContent) -> Iterator[tuple[Thing, SceneSpan, str]]:
    """Thing, interval and words of each clause that can follow "while" in a spatial question."""
    for thing, event in content.events:
        yield thing, event.span, f"the {thing.name} {_does(event)}"
    for thing in content.world.things:
        if _answerable(content.world, thing.presence):
            yield thing, thing.presence, f"the {thing.name} is on screen"


def _place(content: ClipContent) -> Iterator[ClipQuestion]:
    """Which shape is in the top left while the red circle spins?

    Asked only if the shape stays in that region for the whole interval, and no other shape comes near the region.
    """
    world = content.world
    nudges = camera(world)
    for actor, span, clause in _clauses(content):
        frames = np.arange(round(span.start_s * world.fps), round(span.end_s * world.fps))
        always: dict[int, list[Thing]] = {}
        sometimes: dict[int, list[Thing]] = {}
        now = state(world.things, np.broadcast_to(frames / world.fps, (len(world.things), len(frames))))
        x, y = now.x + nudges[frames, 0] - 0.5, now.y + nudges[frames, 1] - 0.5
        for region in range(len(REGIONS)):
            depth = np.minimum(x if region % 2 else -x, y if region // 2 else -y)
            inside = (now.visible & (depth > _BORDER)).all(axis=1)
            near = (now.visible & (depth > -_BORDER)).any(axis=1)
            for thing, is_inside, is_near in zip(world.things, inside, near, strict=True):
                if is_inside:
                    always.setdefault(region, []).append(thing)
                if is_near:
                    sometimes.setdefault(region, []).append(thing)
        for region, things in always.items():
            if sometimes[region] == things and things[0] is not actor:
                question = f"Which shape is in the {REGIONS[region]} while {clause}?"
                yield ClipQuestion(question=question, answer=things[0].shape, family="place", span=None)


def _digit(content: ClipContent) -> Iterator[ClipQuestion]:
    """Which digit is shown while the red circle spins? Which digit is shown in the top left?"""
    for digit in content.world.digits:
        question = f"Which digit is shown in the {REGIONS[digit.region]}?"
        yield ClipQuestion(question=question, answer=NUMBERS[digit.value], family="digit", span=None)
    for _, span, clause in _clauses(content):
        visible_digits = [digit for digit in content.world.digits if digit.span.overlap(span)]
        if len(visible_digits) == 1 and visible_digits[0].span.covers(span):
            question = f"Which digit is shown while {clause}?"
            yield ClipQuestion(question=question, answer=NUMBERS[visible_digits[0].value], family="digit", span=None)


def _sound(content: ClipContent) -> Iterator[ClipQuestion]:
    """When is the low beep heard?"""
    for sound in content.world.sounds:
        if _answerable(content.world, sound.span):
            yield _timed("sound", f"When is the {sound.name} heard?", sound.span, f"the {sound.name} is heard")


TIME_FAMILIES: dict[str, Callable[[ClipContent], Iterator[ClipQuestion]]] = {
    "direct": _direct,
    "something": _something,
    "relation": _relation,
    "next": _next,
    "overlap": _overlap,
    "visible": _visible,
    "crowded": _crowded,
}
SPATIAL_FAMILIES = {"place": _place, "digit": _digit}
SOUND_FAMILIES = {"sound": _sound}
"""Families that only sound can answer. Their clips have a sound track."""
SEEN_FAMILIES = TIME_FAMILIES | SPATIAL_FAMILIES
FAMILIES = SEEN_FAMILIES | SOUND_FAMILIES
ACTION_FAMILIES = ("direct", "something", "relation", "next", "overlap")
"""The families that ask what things do. Without any of these and without spatial families, things only come and go."""
