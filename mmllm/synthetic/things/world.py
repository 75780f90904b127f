"""The content of a clip of named things: shots with a ground and a moving camera, and actors that come and go.

As for the world of shapes, all of it is plain data in seconds and in fractions of the frame's side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from mmllm.synthetic.world import SceneEvent, SceneSound, SceneSpan


class Key(NamedTuple):
    """Where and how an actor is at a time. Between two keys it changes smoothly from one to the other."""

    time_s: float
    x: float
    y: float
    """Centre; y points down."""
    size: float
    """Side of the picture's square."""
    angle: float
    """Radians, clockwise."""


@dataclass(frozen=True, kw_only=True)
class Actor:
    """A picture during an interval of one shot."""

    name: str
    keys: tuple[Key, ...]
    """At least two, in order of time. It is there from the time of the first to the time of the last."""
    nearness: float = 1.0
    """How far it moves against the camera: 1 with it, less if it is far away."""
    events: tuple[SceneEvent, ...] = ()
    """What it does, for questions; the keys already have it."""

    @property
    def presence(self) -> SceneSpan:
        """When it is there. It can still be out of the frame, or behind another actor."""
        return SceneSpan(self.keys[0].time_s, self.keys[-1].time_s)


@dataclass(frozen=True, kw_only=True)
class Shot:
    """A part of a clip with one ground and one movement of the camera."""

    first_frame: int
    ground: str
    """A name of `Grounds`."""
    ground_seed: int
    pan: tuple[float, float] = (0.0, 0.0)
    """How far the camera moves to the right and down during the shot, in fractions of the side."""
    zoom: tuple[float, float] = (1.0, 1.0)
    """How much it enlarges at the beginning and at the end."""


@dataclass(frozen=True, kw_only=True)
class ThingsWorld:
    """The whole content of a clip."""

    frames: int
    fps: int
    shots: tuple[Shot, ...]
    actors: tuple[Actor, ...]
    """In the order of drawing, from back to front."""
    texture_seed: int
    """The seed of the noise of the sound."""
    sounds: tuple[SceneSound, ...] = ()
    """Without any, the clip has no sound track."""

    @property
    def duration_s(self) -> float:
        """Duration of the clip in seconds."""
        return self.frames / self.fps

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all actors, sorted."""
        return tuple(sorted({actor.name for actor in self.actors}))
