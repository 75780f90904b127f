"""Drawing random worlds: the number of things, when they are on screen, what they do, and where they have room."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

from mmllm.synthetic.world import (
    ACTIONS,
    COLORS,
    DIRECTIONS,
    LONGEST_FRACTION,
    REGIONS,
    SHAPES,
    SHORTEST_FRACTION,
    SHORTEST_S,
    SOUNDS,
    Digit,
    SceneEvent,
    SceneSound,
    SceneSpan,
    Thing,
    World,
)

_SMALL, _LARGE = (0.096, 0.116), (0.165, 0.182)


@dataclass(frozen=True, kw_only=True)
class WorldRules:
    """The choices from which a world is drawn."""

    colors: tuple[str, ...] = COLORS
    shapes: tuple[str, ...] = SHAPES
    actions: tuple[str, ...] = ACTIONS
    fewest_things: int = 2
    most_things: int = 4
    jitter: float = 0.05
    fewest_scenes: int = 1
    most_scenes: int = 1
    """Scenes of different lengths, with cuts between them. Things that come and go do so at cuts."""


WORLDS = {
    "basic": WorldRules(
        colors=COLORS[:4], shapes=SHAPES[:3], actions=("left", "right", "grow", "white"), most_things=3
    ),
    "easy": WorldRules(colors=COLORS[:4], shapes=SHAPES[:3], actions=ACTIONS[:6], most_things=3),
    "full": WorldRules(),
    "hard": WorldRules(jitter=0.3),
    "scenes": WorldRules(
        colors=COLORS[:4],
        shapes=SHAPES[:3],
        actions=("left", "right", "grow", "white"),
        fewest_things=3,
        fewest_scenes=5,
        most_scenes=8,
    ),
}


class Box(NamedTuple):
    """A part of the frame, in fractions of its side."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap_area(self, other: Box) -> float:
        """The area that both boxes cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(width, 0.0) * max(height, 0.0)


def sample_world(
    random_state: random.Random,
    rules: WorldRules,
    *,
    fps: int,
    shortest_s: float,
    longest_s: float,
    digits: bool = True,
    actions: bool = True,
    sounds: bool = False,
) -> World:
    """A random world.

    At least one thing is on screen only for a part of the clip. The other things stay, and each does one to three
    actions.

    Args:
        random_state: the source of all random numbers.
        rules: from what the world is drawn.
        fps: frames a second.
        shortest_s, longest_s: range of the duration in seconds.
        digits: whether digits are shown.
        actions: whether things do anything. If not, all of them come and go.
        sounds: whether something is heard.
    """
    frames = round(random_state.uniform(shortest_s, longest_s) * fps)
    count = random_state.randint(rules.fewest_things, rules.most_things)
    visitors = random_state.randint(1, count - 1) if actions else count
    colors = random_state.sample(rules.colors, count)
    cuts = _cuts(random_state, rules, frames, fps) if rules.most_scenes > 1 else ()
    timelines = []
    for i in range(count):
        presence = SceneSpan(0.0, frames / fps)
        if visitor := i < visitors:
            presence = _of_scenes(random_state, cuts, frames, fps) if cuts else _random_span(random_state, frames, fps)
        plan = _plan(random_state, presence, frames, fps, rules.actions, visitor=visitor) if actions else ()
        timelines.append((presence, plan))
    things, boxes = _laid_out(random_state, rules, colors, timelines)
    shown_digits = _digits(random_state, things, boxes, frames, fps) if digits else ()
    random_state.shuffle(things)
    return World(
        frames=frames,
        fps=fps,
        things=tuple(things),
        digits=shown_digits,
        jitter=rules.jitter,
        noise=random_state.uniform(1.0, 3.5),
        texture_seed=random_state.getrandbits(48),
        sounds=random_sounds(random_state, frames, fps) if sounds else (),
        cuts=cuts,
    )


def _cuts(random_state: random.Random, rules: WorldRules, frames: int, fps: int) -> tuple[int, ...]:
    """Frames with which scenes begin, without the first. The longest scenes are many times as long as the shortest."""
    count = random_state.randint(rules.fewest_scenes, rules.most_scenes)
    shortest = span_bounds(frames, fps)[0]
    shares = [math.exp(random_state.uniform(0.0, math.log(30.0))) for _ in range(count)]
    slack, edge, cuts = frames - count * shortest, 0.0, []
    for share in shares[:-1]:
        edge += shortest + slack * share / sum(shares)
        cuts.append(round(edge))
    return tuple(cuts)


def _of_scenes(random_state: random.Random, cuts: Sequence[int], frames: int, fps: int) -> SceneSpan:
    """A random run of whole scenes, within the limits for questions."""
    shortest, longest = span_bounds(frames, fps)
    runs = [run for run in combinations((0, *cuts, frames), 2) if shortest <= run[1] - run[0] <= longest]
    start, end = random_state.choice(runs)
    return SceneSpan(start / fps, end / fps)


def span_bounds(frames: int, fps: int) -> tuple[int, int]:
    """The shortest and the longest interval that is asked for, in frames."""
    shortest = max(SHORTEST_S * fps, SHORTEST_FRACTION * frames)
    return math.ceil(shortest - 1e-6), int(max(shortest, LONGEST_FRACTION * frames))


def random_sounds(random_state: random.Random, frames: int, fps: int) -> tuple[SceneSound, ...]:
    """One or two different sounds, each once, independent of what is seen."""
    return tuple(
        SceneSound(
            name=name,
            span=_random_span(random_state, frames, fps),
            level=random_state.uniform(0.15, 0.6),
            pitch_hz=random_state.uniform(0.85, 1.15) * {"low beep": 300.0}.get(name, 1200.0),
        )
        for name in random_state.sample(SOUNDS, random_state.randint(1, 2))
    )


def _length(random_state: random.Random, frames: int, fps: int, longest: float = math.inf) -> int:
    """A random length of an interval in frames, log-uniform within the limits for questions."""
    low = max(SHORTEST_S * fps, SHORTEST_FRACTION * frames)
    high = max(low, min(LONGEST_FRACTION * frames, longest))
    return min(max(round(math.exp(random_state.uniform(math.log(low), math.log(high)))), math.ceil(low)), int(high))


def _random_span(random_state: random.Random, frames: int, fps: int) -> SceneSpan:
    """A random interval of random length, within the limits for questions."""
    length = _length(random_state, frames, fps)
    start = random_state.randint(0, frames - length)
    return SceneSpan(start / fps, (start + length) / fps)


def _plan(
    random_state: random.Random, presence: SceneSpan, frames: int, fps: int, actions: Sequence[str], *, visitor: bool
) -> tuple[tuple[str, SceneSpan], ...]:
    """Actions and their intervals within `presence`, in order of time and a second apart.

    A visitor, which is on screen only for a part of the clip, has one action or none.
    """
    start, stop = round(presence.start_s * fps), round(presence.end_s * fps)
    if visitor:
        room = stop - start - fps
        if room < max(SHORTEST_S * fps, SHORTEST_FRACTION * frames) + 1 or random_state.random() < 0.5:
            return ()
        lengths = [_length(random_state, frames, fps, room)]
    else:
        lengths = [_length(random_state, frames, fps) for _ in range(random_state.choice((1, 2, 2, 3, 3)))]
        while sum(lengths) + fps * (len(lengths) + 1) > stop - start:
            lengths.remove(max(lengths))
    pause = fps if not visitor else 0
    slack = stop - start - sum(lengths) - pause * (len(lengths) - 1)
    cuts = sorted(random_state.randint(0, slack) for _ in lengths)
    plan, earliest = [], start
    for action, length, cut in zip(random_state.sample(actions, len(lengths)), lengths, cuts, strict=True):
        plan.append((action, SceneSpan((earliest + cut) / fps, (earliest + cut + length) / fps)))
        earliest += length + pause
    return tuple(plan)


def _laid_out(
    random_state: random.Random,
    rules: WorldRules,
    colors: Sequence[str],
    timelines: Sequence[tuple[SceneSpan, tuple[tuple[str, SceneSpan], ...]]],
) -> tuple[list[Thing], list[Box]]:
    """Things, and for each the box that it does not leave. Of ten boxes, the one with the smallest overlap is taken."""
    things: list[Thing] = []
    boxes: list[Box] = []
    for color, (presence, plan) in zip(colors, timelines, strict=True):
        shape = random_state.choice(rules.shapes)
        other_boxes = [box for thing, box in zip(things, boxes, strict=True) if presence.overlap(thing.presence)]
        smallest_overlap = math.inf
        for _ in range(10):
            candidate, candidate_box = _placed(random_state, color, shape, presence, plan)
            overlap = sum(candidate_box.overlap_area(other_box) for other_box in other_boxes)
            if overlap < smallest_overlap:
                smallest_overlap, thing, box = overlap, candidate, candidate_box
            if overlap == 0.0:
                break
        things.append(thing)
        boxes.append(box)
    return things, boxes


def _placed(
    random_state: random.Random, color: str, shape: str, presence: SceneSpan, plan: Sequence[tuple[str, SceneSpan]]
) -> tuple[Thing, Box]:
    """A thing at a random place with room for its actions, and the box that it does not leave."""
    # 1. Its size; a growing thing starts small, a shrinking one large.
    uniform, actions = random_state.uniform, [action for action, _ in plan]
    sizes = [action for action in actions if action in ("grow", "shrink")]
    small, large = uniform(*_SMALL), uniform(*_LARGE)
    radius = {"grow": small, "shrink": large}[sizes[0]] if sizes else uniform(_SMALL[0], 0.15)
    reach = 1.05 * (large if sizes else radius)

    # 2. Its place on both axes, with room to travel and to hop.
    hop = uniform(0.13, 0.17)
    origin, boxes, travels = [], [], []
    for axis, (backward, forward) in enumerate((("left", "right"), ("up", "down"))):
        low, high = reach + 0.02, 1.0 - reach - 0.02
        if axis == 1 and "bounce" in actions:
            low += hop
        moves = [(action, span) for action, span in plan if action in (backward, forward)]
        if moves:
            # Slow enough to be followed with the eyes, and far enough to be noticed.
            travel = min(max(uniform(0.06, 0.1) * span.length_s for _, span in moves), high - low)
            travel = max(travel, 0.4 * (high - low))
            near = uniform(low, high - travel)
            origin.append(near + travel if moves[0][0] == backward else near)
            boxes.append((near - reach, near + travel + reach))
        else:
            travel = 0.0
            origin.append(uniform(low, high))
            boxes.append((origin[-1] - reach, origin[-1] + reach))
        travels.append(travel)
    if "bounce" in actions:
        boxes[1] = (boxes[1][0] - hop, boxes[1][1])

    # 3. Its events.
    events = []
    for action, span in plan:
        if action in DIRECTIONS:
            amount = travels[1 if action in ("up", "down") else 0]
        elif action in ("grow", "shrink"):
            amount = large - small
        elif action == "spin":
            amount = random_state.choice((-1, 1)) * max(1, round(uniform(0.35, 0.6) * span.length_s))
        else:
            amount = hop if action == "bounce" else 0.0
        events.append(SceneEvent(action=action, span=span, amount=amount))
    thing = Thing(
        color=color,
        shape=shape,
        x=origin[0],
        y=origin[1],
        radius=radius,
        angle=uniform(-0.2, 0.2),
        presence=presence,
        events=tuple(events),
    )
    return thing, Box(boxes[0][0], boxes[1][0], boxes[0][1], boxes[1][1])


def _digits(
    random_state: random.Random, things: Sequence[Thing], boxes: Sequence[Box], frames: int, fps: int
) -> tuple[Digit, ...]:
    """One or two digits in different regions. About half of them are shown for the whole interval of some event."""
    digits: list[Digit] = []
    spans = [event.span for thing in things for event in thing.events]
    count = random_state.randint(1, 2)
    values, regions = random_state.sample(range(10), count), random_state.sample(range(len(REGIONS)), count)
    for value, region in zip(values, regions, strict=True):
        span = _random_span(random_state, frames, fps)
        if spans and random_state.random() < 0.5:
            event_span = random_state.choice(spans)
            before, after = (random_state.randint(0, 2 * fps) / fps for _ in range(2))
            start = max(round((event_span.start_s - before) * fps), 0)
            span = SceneSpan(start / fps, min(round((event_span.end_s + after) * fps), frames) / fps)
        # Of six places in the region, take the one that covers things least.
        thing_boxes = [box for thing, box in zip(things, boxes, strict=True) if thing.presence.overlap(span)]
        places = []
        for _ in range(6):
            x = (0.25, 0.75)[region % 2] + random_state.uniform(-0.08, 0.08)
            y = (0.25, 0.75)[region // 2] + random_state.uniform(-0.08, 0.08)
            plate = Box(x - 0.12, y - 0.15, x + 0.12, y + 0.15)
            places.append((sum(plate.overlap_area(box) for box in thing_boxes), x, y))
        _, x, y = min(places)
        digits.append(Digit(value=value, region=region, x=x, y=y, span=span))
    return tuple(digits)
