"""The content of a synthetic clip: a few coloured shapes, when each is on screen and what it does.

A world is plain data in seconds and in fractions of the frame's side. So it can be drawn at any size, and questions
need no drawing. All times are those of frames, so a label is exact to the frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

COLORS = ("red", "green", "blue", "yellow", "purple", "cyan")
SHAPES = ("square", "circle", "triangle", "cross")
ACTIONS = ("left", "right", "spin", "grow", "blink", "white", "up", "down", "bounce", "shrink")
SOUNDS = ("high beep", "low beep", "ticking")
REGIONS = ("top left", "top right", "bottom left", "bottom right")

SHORTEST_S = 2.0
SHORTEST_FRACTION, LONGEST_FRACTION = 0.06, 0.35
"""Each interval that is asked for lasts at least 2 s and 6 % of the clip, and at most 35 % of it. So a constant answer
has a low score."""

DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_CAMERA_REACH = 3
_DIM = 0.15


class SceneSpan(NamedTuple):
    """An interval in seconds. Its end is the time of the first frame after it."""

    start_s: float
    end_s: float

    @property
    def length_s(self) -> float:
        """Length in seconds."""
        return self.end_s - self.start_s

    def overlap(self, other: SceneSpan) -> SceneSpan | None:
        """The part that both intervals have in common; None if there is none."""
        start_s, end_s = max(self.start_s, other.start_s), min(self.end_s, other.end_s)
        return SceneSpan(start_s, end_s) if start_s < end_s else None

    def covers(self, other: SceneSpan) -> bool:
        """Whether the other interval lies inside of this one."""
        return self.start_s <= other.start_s and other.end_s <= self.end_s


@dataclass(frozen=True, kw_only=True)
class SceneEvent:
    """An action of a thing during an interval."""

    action: str
    """One of `ACTIONS`."""
    span: SceneSpan
    amount: float
    """By the action: distance, growth or height of a hop in fractions of the side; number of turns; else 0."""


@dataclass(frozen=True, kw_only=True)
class Thing:
    """A coloured shape, with its state at the start of the clip. All things of a world have different colours."""

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
    """In order of time. Events do not overlap, and each action occurs at most once."""

    @property
    def name(self) -> str:
        """Colour and shape, such as "red circle"."""
        return f"{self.color} {self.shape}"


@dataclass(frozen=True, kw_only=True)
class Digit:
    """A digit on a small dark plate, shown during an interval."""

    value: int
    region: int
    """Index in `REGIONS`."""
    x: float
    y: float
    span: SceneSpan


@dataclass(frozen=True, kw_only=True)
class SceneSound:
    """A sound during an interval. Nothing in the picture shows it."""

    name: str
    """One of `SOUNDS`."""
    span: SceneSpan
    level: float
    """Highest sample, from 0 to 1."""
    pitch_hz: float


@dataclass(frozen=True, kw_only=True)
class World:
    """The whole content of a clip."""

    frames: int
    fps: int
    things: tuple[Thing, ...]
    """In the order of drawing, from back to front."""
    digits: tuple[Digit, ...]
    jitter: float
    """Probability that the camera is nudged before a frame."""
    noise: float
    """Standard deviation of the sensor noise in grey levels."""
    texture_seed: int
    """The seed of background, camera nudges and noise."""
    sounds: tuple[SceneSound, ...] = ()
    """Different sounds. Without any, the clip has no sound track."""
    cuts: tuple[int, ...] = ()
    """Frames with which another scene begins, ascending. Each scene has its own background."""

    @property
    def duration_s(self) -> float:
        """Duration of the clip in seconds."""
        return self.frames / self.fps

    @property
    def whole(self) -> SceneSpan:
        """The interval of the whole clip."""
        return SceneSpan(0.0, self.duration_s)


class State(NamedTuple):
    """How things look at some times. All arrays have the same shape; units are those of `Thing`."""

    visible: np.ndarray
    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    angle: np.ndarray
    white: np.ndarray
    opacity: np.ndarray


def state(things: Sequence[Thing], times_s: np.ndarray) -> State:
    """How each of N things looks at its F times (`times_s`, N F), before the camera's nudges; all arrays are N F.

    A thing turns, hops or blinks a whole number of times, so afterwards it looks as before. Changes of place and size
    remain. A blinking thing is dimmed but not hidden, and a white thing keeps a rim of its own colour, so each thing
    can be recognised in a single frame.
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
    for action, rows_and_events in by_action.items():  # a thing has each action at most once, so no row occurs twice
        row = np.array([i for i, _ in rows_and_events])
        start_s, end_s, amount = np.array([(*event.span, event.amount) for _, event in rows_and_events]).T[:, :, None]
        length_s = end_s - start_s
        progress = np.clip((times_s[row] - start_s) / length_s, 0.0, 1.0)
        if action in DIRECTIONS:
            right, down = DIRECTIONS[action]
            x[row] += right * amount * progress
            y[row] += down * amount * progress
        elif action == "spin":
            angle[row] += 2 * np.pi * amount * progress
        elif action in ("grow", "shrink"):
            radius[row] += (1 if action == "grow" else -1) * amount * progress
        elif action == "bounce":
            y[row] -= amount * np.abs(np.sin(np.pi * progress * np.maximum(1, np.rint(length_s / 0.9))))
        elif action == "blink":
            opacity[row] = np.where(progress * np.maximum(1, np.rint(length_s / 0.93)) % 1.0 < 0.5, 1.0, _DIM)
        elif action == "white":
            white[row] = (times_s[row] >= start_s) & (times_s[row] < end_s)
    presence = np.array([thing.presence for thing in things]).reshape(-1, 2)
    visible = (times_s >= presence[:, :1]) & (times_s < presence[:, 1:])
    return State(visible, x, y, radius, angle, white, opacity)


def camera(world: World) -> np.ndarray:
    """How far the camera moves each frame, float64 (frames, 2): x and y in fractions of the side, at most 3/64."""
    generator = np.random.Generator(np.random.PCG64(world.texture_seed))
    steps = generator.integers(-1, 2, size=(world.frames, 2)) * (generator.random((world.frames, 1)) < world.jitter)
    reach = _CAMERA_REACH
    return (np.abs((np.cumsum(steps, axis=0) + reach) % (4 * reach) - 2 * reach) - reach) / 64
