"""What a thing does while it is there: come, stay, move, grow, turn, hide behind another, and go."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

from mmllm.synthetic.things.world import Actor, Key
from mmllm.synthetic.world import DIRECTIONS, SceneEvent, SceneSpan

ACTIONS = ("left", "right", "up", "down", "grow", "shrink", "spin")
"""What a thing can be asked for."""
_DISTANCES = {"far": (0.17, 0.22, 0.5), "middle": (0.24, 0.34, 0.8), "near": (0.38, 0.48, 1.0)}
"""Smallest and largest size in sides of the frame, and how far a thing moves against the camera."""
_ACTS, _SLIDES = 0.65, 0.5
_GROWTH = 1.6
_CANDIDATES = 16


class Part(NamedTuple):
    """An interval of frames, and frames a second."""

    first: int
    last: int
    """The first frame after it."""
    fps: int

    def time_s(self, frame: int) -> float:
        """The time of a frame."""
        return frame / self.fps


def acted(
    random_state: random.Random, name: str, part: Part, limits: tuple[int, int], others: Sequence[Actor]
) -> Actor:
    """An actor that is there during a part of a clip.

    It does something that can be asked for, or it may slide in or out; never both, so that a question about a movement
    means one.

    Args:
        random_state: the source of all random numbers.
        name: of the picture.
        part: when it is there.
        limits: shortest and longest interval that is asked for, in frames.
        others: keeps away from these where it can.
    """
    low, high, nearness = _DISTANCES[random_state.choice(list(_DISTANCES))]
    size = random_state.uniform(low, high)
    pause = round(0.6 * part.fps)
    room = part.last - part.first - 2 * pause
    action = random_state.choice(ACTIONS) if room >= limits[0] and random_state.random() < _ACTS else ""
    if not action:
        x, y = _spot(random_state, size, (0.0, 0.0), part, others)
        here = Key(part.time_s(part.first), x, y, size, random_state.uniform(-0.15, 0.15))
        return Actor(name=name, keys=_with_slides(random_state, here, part), nearness=nearness)
    if action == "grow":
        size = min(size, 0.3)
    length = random_state.randint(limits[0], min(room, limits[1]))
    begin = part.first + pause + random_state.randint(0, room - length)
    amount = random_state.uniform(0.25, 0.4) if action in DIRECTIONS else 0.0
    right, down = DIRECTIONS.get(action, (0, 0))
    x, y = _spot(random_state, size, (right * amount, down * amount), part, others)
    before = Key(0.0, x, y, size, random_state.uniform(-0.15, 0.15))
    after = Key(
        0.0,
        x + right * amount,
        y + down * amount,
        size * {"grow": _GROWTH, "shrink": 1 / _GROWTH}.get(action, 1.0),
        before.angle + (2 * math.pi * max(1, round(length / part.fps / 2.5)) if action == "spin" else 0.0),
    )
    keys = [(part.first, before), (begin, before), (begin + length, after), (part.last, after)]
    span = SceneSpan(part.time_s(begin), part.time_s(begin + length))
    event = SceneEvent(action=action, span=span, amount=amount)
    return Actor(name=name, keys=_timed(keys, part.fps), nearness=nearness, events=(event,))


def hiding_pair(
    random_state: random.Random, hider: str, cover: str, part: Part, limits: tuple[int, int]
) -> list[Actor]:
    """Two actors: one moves behind the other, waits there, and comes out again; empty if the part is too short."""
    shortest, longest = limits
    move, wait = max(2, round(0.6 * part.fps)), random_state.randint(2 * part.fps, 3 * part.fps)
    before, after = (random_state.randint(shortest, shortest + part.fps) for _ in range(2))
    length = before + after + 2 * move + wait
    pause = round(0.8 * part.fps)
    cover_length = 2 * move + wait + 2 * pause
    if length > part.last - part.first or max(before + after, cover_length) > longest or cover_length < shortest:
        return []
    first = random_state.randint(part.first, part.last - length)
    size = random_state.uniform(0.42, 0.5)
    x, y = random_state.uniform(0.35, 0.65), random_state.uniform(0.4, 0.62)
    away = random_state.uniform(0.3, 0.34)
    small = random_state.uniform(0.17, 0.2)
    enter, hidden = first + before, first + before + move
    leave = hidden + wait
    start, end = (
        Key(0.0, x + random_state.choice((-away, away)), y + random_state.uniform(-0.1, 0.1), small, 0.0)
        for _ in range(2)
    )
    behind = Key(0.0, x, y, small, 0.0)
    hider_keys = [
        (first, start), (enter, start), (hidden, behind), (leave, behind), (leave + move, end), (first + length, end),
    ]  # fmt: skip
    standing = Key(0.0, x, y, size, 0.0)
    cover_keys = [(enter - pause, standing), (leave + move + pause, standing)]
    return [
        Actor(name=hider, keys=_timed(hider_keys, part.fps), nearness=0.9),
        Actor(name=cover, keys=_timed(cover_keys, part.fps), nearness=1.0),
    ]


def _timed(keys: Sequence[tuple[int, Key]], fps: int) -> tuple[Key, ...]:
    """Keys with the times of their frames."""
    return tuple(key._replace(time_s=frame / fps) for frame, key in keys)


def _with_slides(random_state: random.Random, here: Key, part: Part) -> tuple[Key, ...]:
    """The keys of an actor that stays in its place, and perhaps slides in at first and out at last."""
    time = max(2, min(round(0.8 * part.fps), (part.last - part.first) // 5))
    outside = here._replace(x=-0.6 * here.size if here.x < 0.5 else 1 + 0.6 * here.size)
    keys = [(part.first, here), (part.last, here)]
    if part.last - part.first <= 2 * time:
        return _timed(keys, part.fps)
    if random_state.random() < _SLIDES:
        keys[:1] = [(part.first, outside), (part.first + time, here)]
    if random_state.random() < _SLIDES:
        keys[-1:] = [(part.last - time, here), (part.last, outside)]
    return _timed(keys, part.fps)


def _spot(
    random_state: random.Random, size: float, way: tuple[float, float], part: Part, others: Sequence[Actor]
) -> tuple[float, float]:
    """A place inside of the frame, with the way that is gone from there, and far from others at the same time."""
    margin = min(0.56 * size, 0.45)
    (low_x, high_x), (low_y, high_y) = (
        (margin + max(0.0, -step), max(1 - margin - max(0.0, step), margin + max(0.0, -step))) for step in way
    )
    span = SceneSpan(part.time_s(part.first), part.time_s(part.last))
    meanwhile = [actor.keys[len(actor.keys) // 2] for actor in others if actor.presence.overlap(span)]
    spots = [(random_state.uniform(low_x, high_x), random_state.uniform(low_y, high_y)) for _ in range(_CANDIDATES)]

    def room(spot: tuple[float, float]) -> float:
        return min(
            (math.hypot(spot[0] - key.x, spot[1] - key.y) - (size + key.size) / 2 for key in meanwhile), default=0
        )

    return max(spots, key=room)
