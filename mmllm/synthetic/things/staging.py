"""Which picture is where in each frame, and whether it can be seen.

A picture of which less than a part can be seen, because others are in front of it or it is out of the frame, is not
drawn at all. So a picture has pixels in exactly the frames in which the annotations say that it is on screen.

A actors, F frames
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmllm.synthetic.things.pictures import PictureSet
from mmllm.synthetic.things.placing import alpha_of
from mmllm.synthetic.things.world import Actor, ThingsWorld
from mmllm.synthetic.world import SceneSpan

LEAST_VISIBLE = 0.15
"""A picture is drawn if at least this part of it can be seen."""
_SIDE = 64
"""Side of the frames, in pixels, in which it is found out what covers what."""
_REACH = 0.71
"""Distance of a picture's corner from its centre, in sides of the picture."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Staging:
    """A world at all of its frames."""

    world: ThingsWorld
    shot: np.ndarray
    """int64, F. The shot of each frame."""
    offset: np.ndarray
    """float64, F 2. How far the camera has moved to the right and down."""
    zoom: np.ndarray
    """float64, F. How much it enlarges."""
    x: np.ndarray
    y: np.ndarray
    size: np.ndarray
    angle: np.ndarray
    """float64, A F, as the camera sees them; only where an actor is present."""
    visible: np.ndarray
    """bool, A F. Whether an actor is drawn."""

    def rows(self, name: str) -> list[int]:
        """The actors of a name."""
        return [row for row, actor in enumerate(self.world.actors) if actor.name == name]

    def frames(self, name: str) -> np.ndarray:
        """bool, F. Whether a name is on screen."""
        return np.any(self.visible[self.rows(name)], axis=0)

    def spans(self, name: str) -> list[SceneSpan]:
        """When a name is on screen, in order of time. The end is the time of the first frame after it."""
        return runs(self.frames(name), self.world.fps)

    @property
    def on_screen(self) -> dict[str, list[SceneSpan]]:
        """When each name is on screen; names that are never seen have no entry."""
        spans = {name: self.spans(name) for name in self.world.names}
        return {name: own for name, own in spans.items() if own}


def runs(frames: np.ndarray, fps: int) -> list[SceneSpan]:
    """The runs of true values (bool, F) as intervals in seconds."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], frames, [False]]).astype(np.int8)))
    return [SceneSpan(int(start) / fps, int(end) / fps) for start, end in edges.reshape(-1, 2)]


def staged(world: ThingsWorld, pictures: PictureSet) -> Staging:
    """The world at all of its frames."""
    frame = np.arange(world.frames)
    times_s = frame / world.fps
    first = np.array([shot.first_frame for shot in world.shots])
    last = np.append(first[1:], world.frames)
    shot = np.searchsorted(first, frame, side="right") - 1
    progress = (frame - first[shot]) / np.maximum(last[shot] - first[shot] - 1, 1)
    pan = np.array([shot.pan for shot in world.shots])
    zooms = np.array([shot.zoom for shot in world.shots])
    offset = pan[shot] * (progress - 0.5)[:, None]
    zoom = zooms[shot, 0] * (1 - progress) + zooms[shot, 1] * progress
    shape = (len(world.actors), world.frames)
    x, y, size, angle = (np.zeros(shape) for _ in range(4))
    present = np.zeros(shape, dtype=bool)
    for row, actor in enumerate(world.actors):
        x[row], y[row], size[row], angle[row] = _track(actor, times_s)
        x[row] = 0.5 + (x[row] - 0.5 - actor.nearness * offset[:, 0]) * zoom
        y[row] = 0.5 + (y[row] - 0.5 - actor.nearness * offset[:, 1]) * zoom
        present[row] = (times_s >= actor.presence.start_s - 1e-9) & (times_s < actor.presence.end_s - 1e-9)
    size *= zoom
    staging = Staging(
        world=world, shot=shot, offset=offset, zoom=zoom, x=x, y=y, size=size, angle=angle, visible=present
    )
    for number in frame:
        _hide(staging, pictures, int(number))
    return staging


def _track(actor: Actor, times_s: np.ndarray) -> np.ndarray:
    """x, y, size and angle at some times (4 F), before the camera."""
    keys = np.array(actor.keys)
    row = np.clip(np.searchsorted(keys[:, 0], times_s, side="right") - 1, 0, len(keys) - 2)
    start, end = keys[row], keys[row + 1]
    progress = np.clip((times_s - start[:, 0]) / (end[:, 0] - start[:, 0]), 0.0, 1.0)[:, None]
    progress = progress * progress * (3 - 2 * progress)
    return (start[:, 1:] + (end[:, 1:] - start[:, 1:]) * progress).T


def _hide(staging: Staging, pictures: PictureSet, frame: int) -> None:
    """Sets which of a frame's actors cannot be seen, from the front to the back."""
    rows = np.flatnonzero(staging.visible[:, frame])
    x, y, size = (values[rows, frame] for values in (staging.x, staging.y, staging.size))
    reach = _REACH * size
    near = np.hypot(x[:, None] - x[None], y[:, None] - y[None]) < reach[:, None] + reach[None]
    inside = np.minimum(np.minimum(x, 1 - x), np.minimum(y, 1 - y)) >= reach
    if inside.all() and near.sum() == len(rows):  # each is near to itself alone
        return
    covered = np.zeros((_SIDE, _SIDE))
    for row in rows[::-1]:
        name = staging.world.actors[row].name
        place = (staging.x[row, frame], staging.y[row, frame], staging.size[row, frame], staging.angle[row, frame])
        alpha, whole = alpha_of(pictures, name, place, _SIDE)
        seen = float((alpha * (1 - covered)).sum())
        staging.visible[row, frame] = seen >= LEAST_VISIBLE * whole
        if staging.visible[row, frame]:
            covered += alpha * (1 - covered)
