"""What happens in a synthetic clip: a few coloured shapes, when each is on screen and what it does.

A world is plain data in seconds and in fractions of the frame's side, so that it can be drawn at any size and
questioned without being drawn. All its instants fall on frames, so that a label is never off by part of a frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

COLORS = ("red", "green", "blue", "yellow", "purple", "cyan")
SHAPES = ("square", "circle", "triangle", "cross")
ACTIONS = ("left", "right", "spin", "grow", "blink", "white", "up", "down", "bounce", "shrink")
REGIONS = ("top left", "top right", "bottom left", "bottom right")

SHORTEST_S = 2.0
SHORTEST_SHARE, LONGEST_SHARE = 0.06, 0.35
"""Every interval that can be asked for lasts at least 2 s and 6 %, and at most 35 % of the clip: answering with the
same interval each time then gains little."""

DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_CAMERA_REACH = 3
_DIM = 0.15


class SceneSpan(NamedTuple):
    """A stretch of time in seconds; the end is where the first frame after it is shown."""

    start_s: float
    end_s: float

    @property
    def length_s(self) -> float:
        return self.end_s - self.start_s

    def overlap(self, other: SceneSpan) -> SceneSpan | None:
        """What both have in common, if anything."""
        start_s, end_s = max(self.start_s, other.start_s), min(self.end_s, other.end_s)
        return SceneSpan(start_s, end_s) if start_s < end_s else None

    def covers(self, other: SceneSpan) -> bool:
        return self.start_s <= other.start_s and other.end_s <= self.end_s


@dataclass(frozen=True, kw_only=True)
class SceneEvent:
    """Something that a thing does for a while."""

    action: str
    """One of `ACTIONS`."""
    span: SceneSpan
    amount: float
    """Travel or growth in sides, whole turns, or seconds for a hop or a blink, as the action has it."""


@dataclass(frozen=True, kw_only=True)
class Thing:
    """A coloured shape, with its state at the start of the clip. No two things of a world share a colour."""

    color: str
    shape: str
    x: float
    y: float
    radius: float
    """Centre and size in fractions of the frame's side; y points down."""
    angle: float
    """Radians, clockwise."""
    presence: SceneSpan
    events: tuple[SceneEvent, ...]
    """In order of time, never two at once, each action once at most."""

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"


@dataclass(frozen=True, kw_only=True)
class Digit:
    """A digit shown for a while on a small dark plate."""

    value: int
    region: int
    """Index in `REGIONS`."""
    x: float
    y: float
    span: SceneSpan


@dataclass(frozen=True, kw_only=True)
class World:
    """Everything that a clip shows."""

    frames: int
    fps: int
    things: tuple[Thing, ...]
    """In the order of drawing, from behind to the front."""
    digits: tuple[Digit, ...]
    jitter: float
    """Probability that the camera is nudged before a frame."""
    noise: float
    """Standard deviation of the sensor noise in grey levels."""
    texture_seed: int
    """What the background, the nudges and the noise are drawn from."""

    @property
    def duration_s(self) -> float:
        return self.frames / self.fps

    @property
    def whole(self) -> SceneSpan:
        return SceneSpan(0.0, self.duration_s)


class State(NamedTuple):
    """How things look at some instants; arrays of one shape, with sides and radians as in `Thing`."""

    visible: np.ndarray
    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    angle: np.ndarray
    white: np.ndarray
    opacity: np.ndarray


def state(things: Sequence[Thing], times_s: np.ndarray) -> State:
    """How each of N things looks at F instants of its own (N F), before the camera's nudges; all arrays N F.

    A thing that turns, hops or blinks does so a whole number of times, and so ends as it began; what it has
    travelled and grown remains. A blink dims rather than hides, and a white thing keeps a rim of its own colour, so
    that a single frame always tells which thing it shows.
    """

    def start(name: str) -> np.ndarray:
        return np.array([getattr(thing, name) for thing in things], dtype=np.float64)[:, None]

    shape = times_s.shape
    x, y, radius, angle = (start(name) + np.zeros(shape) for name in ("x", "y", "radius", "angle"))
    white, opacity = np.zeros(shape, dtype=bool), np.ones(shape)
    by_action: dict[str, list[tuple[int, SceneEvent]]] = {}
    for i, thing in enumerate(things):
        for event in thing.events:
            by_action.setdefault(event.action, []).append((i, event))
    for action, found in by_action.items():  # each action at most once a thing, so that no row is here twice
        row = np.array([i for i, _ in found])
        start_s, end_s, amount = np.array([(*event.span, event.amount) for _, event in found]).T[:, :, None]
        length_s = end_s - start_s
        done = np.clip((times_s[row] - start_s) / length_s, 0.0, 1.0)
        if action in DIRECTIONS:
            right, down = DIRECTIONS[action]
            x[row] += right * amount * done
            y[row] += down * amount * done
        elif action == "spin":
            angle[row] += 2 * np.pi * amount * done
        elif action in ("grow", "shrink"):
            radius[row] += (1 if action == "grow" else -1) * amount * done
        elif action == "bounce":
            y[row] -= amount * np.abs(np.sin(np.pi * done * np.maximum(1, np.rint(length_s / 0.9))))
        elif action == "blink":
            opacity[row] = np.where(done * np.maximum(1, np.rint(length_s / 0.93)) % 1.0 < 0.5, 1.0, _DIM)
        elif action == "white":
            white[row] = (times_s[row] >= start_s) & (times_s[row] < end_s)
    presence = np.array([thing.presence for thing in things]).reshape(-1, 2)
    visible = (times_s >= presence[:, :1]) & (times_s < presence[:, 1:])
    return State(visible, x, y, radius, angle, white, opacity)


def camera(world: World) -> np.ndarray:
    """Where each frame is nudged to, float64 (frames, 2): x and y in sides, at most 3/64 from the middle."""
    generator = np.random.Generator(np.random.PCG64(world.texture_seed))
    steps = generator.integers(-1, 2, size=(world.frames, 2)) * (generator.random((world.frames, 1)) < world.jitter)
    reach = _CAMERA_REACH
    return (np.abs((np.cumsum(steps, axis=0) + reach) % (4 * reach) - 2 * reach) - reach) / 64
