"""Worlds at selected frames, as arrays: where each thing is and how it looks.

Drawing and targets both use these arrays, so a target always agrees with the picture.

W worlds, F frames of each, N things of all worlds
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmllm.synthetic.world import COLORS, SHAPES, State, Thing, World, camera, state


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage:
    """Selected frames of some worlds."""

    worlds: tuple[World, ...]
    frame_index: np.ndarray
    """int64, W F. Numbers of the selected frames of each world."""
    nudges: np.ndarray
    """float64, W F 2. How far the camera has moved the picture, x and y in fractions of the side."""
    things: tuple[Thing, ...]
    world_index: np.ndarray
    """int64, N. The world that each thing belongs to."""
    layer: np.ndarray
    """int64, N. The thing's position in its world's order of drawing, 0 at the back."""
    color: np.ndarray
    """int64, N. Index in `COLORS`."""
    shape: np.ndarray
    """int64, N. Index in `SHAPES`."""
    now: State
    """Arrays N F, after the camera's nudges."""

    @property
    def times_s(self) -> np.ndarray:
        """float64, W F. When each frame is shown."""
        return self.frame_index / np.array([[world.fps] for world in self.worlds])


def stage(worlds: Sequence[World], frame_index: np.ndarray) -> Stage:
    """The stage of some worlds at frames `frame_index` (int64, W F)."""
    things = [thing for world in worlds for thing in world.things]
    counts = [len(world.things) for world in worlds]
    world_index = np.repeat(np.arange(len(worlds)), counts)
    nudges = np.stack([camera(world)[index] for world, index in zip(worlds, frame_index, strict=True)])  # W F 2
    times_s = frame_index / np.array([[world.fps] for world in worlds])
    now = state(things, times_s[world_index])
    moved = nudges[world_index]
    return Stage(
        worlds=tuple(worlds),
        frame_index=frame_index,
        nudges=nudges,
        things=tuple(things),
        world_index=world_index,
        layer=np.concatenate([np.arange(count) for count in counts]),
        color=np.array([COLORS.index(thing.color) for thing in things]),
        shape=np.array([SHAPES.index(thing.shape) for thing in things]),
        now=now._replace(x=now.x + moved[..., 0], y=now.y + moved[..., 1]),
    )
