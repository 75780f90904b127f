"""What a synthetic frame shows, as targets to train and to judge a frame encoder with, and single scenes to train on.

A scene is three frames of a fresh world, as far apart as the frames sampled from a clip are; its targets describe the
middle one. Scenes cost a hundredth of a clip, and an encoder that sees each only once cannot learn them by heart.

All targets can be told from the pixels: a thing that is white keeps a rim and a hand of its own colour, and one that
blinks is dimmed but not hidden. Only whether a thing blinks or hops may escape in three frames.

N scenes or frames; W worlds, F frames of each, as in a stage
"""

from __future__ import annotations

import math
import random

import numpy as np

from mmllm.errors import InputError
from mmllm.synthetic.clips import SyntheticConfig, fresh_world
from mmllm.synthetic.drawing import draw_stage, plate
from mmllm.synthetic.staging import Stage, stage
from mmllm.synthetic.world import ACTIONS, COLORS, SceneSpan, World

CELLS = 4
"""Rows and columns of the grid of the targets that are given by place."""

_QUIET, _EDGE = 0.2, 0.4
"""Shares of the scenes whose instant is drawn from the whole clip, and from where something begins or ends; the others
lie where something is going on."""


def scene_batch(
    config: SyntheticConfig, seed: int, count: int, *, sampled: tuple[int, int] = (25, 100)
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Frames and targets of `count` independent scenes, which look like decoded frames of the clips of `config`.

    The same arguments give the same scenes, none of which is in a clip.

    Args:
        seed: which scenes; a training step's number, for instance.
        count: how many.
        sampled: least and most frames that are sampled from a clip. The three frames of a scene are D / n seconds
            apart, with n drawn from this range and D the duration of the scene's world.

    Returns:
        Frames, uint8 (N 3 S S 3) in RGB, and the targets of the middle ones: what `frame_targets` gives, and
        visible_begin, visible_end, events_begin, events_end, which are true of the first or the last of the sampled
        frames in which a thing is visible or does something.
    """
    fewest, most = sampled
    if not 1 <= fewest <= most:
        raise InputError(f"sampled = {sampled}: must be two numbers of frames, at least 1 and in ascending order")
    random_state = random.Random(f"{config.seed}/scenes/{seed}")
    worlds, triplets = [], np.empty((count, 3), dtype=np.int64)
    for triplet in triplets:
        world = fresh_world(config, random_state)
        spacing = world.frames / math.exp(random_state.uniform(math.log(fewest), math.log(most)))
        middle = _instant(world, spacing, random_state)
        triplet[:] = [max(round(middle - spacing), 0), middle, min(round(middle + spacing), world.frames - 1)]
        worlds.append(world)
    scene = stage(worlds, triplets)
    frames = draw_stage(scene, config.size, as_encoded=True)
    states = describe(scene, config.size)
    targets = {name: values[:, 1] for name, values in states.items()}
    for name in ("visible", "events"):
        before, now, after = (states[name][:, frame] for frame in range(3))
        targets[f"{name}_begin"], targets[f"{name}_end"] = now & ~before, now & ~after
    return frames, targets


def frame_targets(world: World, times_s: np.ndarray, *, size: int = 64) -> dict[str, np.ndarray]:
    """What a clip of `world` shows at each of N instants; colours are in the order of `COLORS`, whatever the world.

    - visible, white: bool (N colours). A thing counts as visible whether or not it is dimmed or partly covered.
    - x, y, radius: float32 (N colours), in sides of the frame, 0 where not visible.
    - shape: int8 (N colours), index in `SHAPES`, -1 where not visible.
    - events: bool (N colours actions), whether it is doing each of `ACTIONS`.
    - cell_color, cell_shape, cell_digit: int8 (N 4 4), what fills most of each cell of the frame, rows from the top:
      index in `COLORS`, in `SHAPES`, or the digit; -1 for none.
    - cell_events: bool (N 4 4 actions), what the thing does that fills most of the cell.

    Args:
        times_s: N instants; the frame shown at each is described.
        size: side of a frame in pixels, which digits are drawn to.
    """
    frames = np.floor(np.asarray(times_s, dtype=np.float64) * world.fps + 1e-6).astype(np.int64)
    frames = np.clip(frames, 0, world.frames - 1)
    return {name: values[0] for name, values in describe(stage([world], frames[None]), size).items()}


def _instant(world: World, spacing: float, random_state: random.Random) -> int:
    """A frame, mostly one in which something is going on or changes; `spacing` is the gap of sampled frames."""
    spans = [event.span for thing in world.things for event in thing.events]
    spans += [thing.presence for thing in world.things if thing.presence != world.whole]
    spans += [digit.span for digit in world.digits]
    kind = random_state.random()
    span: SceneSpan = world.whole if kind < _QUIET or not spans else random_state.choice(spans)
    first, last = round(span.start_s * world.fps), round(span.end_s * world.fps) - 1
    if _QUIET <= kind < _QUIET + _EDGE:
        reach = min(math.ceil(spacing) - 1, last - first)
        first, last = random_state.choice([(first, first + reach), (last - reach, last)])
    return random_state.randint(first, last)


def describe(scene: Stage, size: int) -> dict[str, np.ndarray]:
    """The targets of all frames of a stage, as in `frame_targets` but with axes W F for N."""
    w, f = scene.frame_index.shape
    now, owner, color = scene.now, scene.world_index, scene.color
    targets: dict[str, np.ndarray] = {}
    for name, values, kind, absent in (
        ("visible", now.visible, bool, False),
        ("white", now.white, bool, False),
        ("x", now.x, np.float32, 0),
        ("y", now.y, np.float32, 0),
        ("radius", now.radius, np.float32, 0),
        ("shape", scene.shape[:, None], np.int8, -1),
    ):
        targets[name] = np.full((w, f, len(COLORS)), absent, dtype=kind)
        targets[name][owner, :, color] = np.where(now.visible, values, absent)

    targets["events"] = np.zeros((w, f, len(COLORS), len(ACTIONS)), dtype=bool)
    times_s = scene.times_s
    for i, thing in enumerate(scene.things):
        for event in thing.events:
            during = (times_s[owner[i]] >= event.span.start_s) & (times_s[owner[i]] < event.span.end_s)
            targets["events"][owner[i], :, color[i], ACTIONS.index(event.action)] = during
    cells = _cells(scene, size)
    color = cells["cell_color"].astype(np.int64).reshape(w, f, CELLS * CELLS, 1)
    doing = np.take_along_axis(targets["events"], np.maximum(color, 0), axis=2) & (color >= 0)
    cells["cell_events"] = doing.reshape(w, f, CELLS, CELLS, len(ACTIONS))
    return targets | cells


def _cells(scene: Stage, size: int) -> dict[str, np.ndarray]:
    """What fills most of each cell of the frame, int8 (W F 4 4)."""
    w, f = scene.frame_index.shape
    cells = {name: np.full((w, f, CELLS, CELLS), -1, dtype=np.int8) for name in ("cell_color", "cell_shape")}
    most = np.zeros((w, f, CELLS, CELLS))
    filled = _filled(scene.now.x, scene.now.y, 0.85 * scene.now.radius, 0.85 * scene.now.radius)  # N F 4 4
    filled *= scene.now.visible[..., None, None]
    for layer in range(scene.layer.max(initial=-1) + 1):
        thing = np.flatnonzero(scene.layer == layer)
        owner = scene.world_index[thing]
        taken = (filled[thing] > 0) & (filled[thing] >= most[owner])
        most[owner] = np.where(taken, filled[thing], most[owner])
        for name, index in (("cell_color", scene.color), ("cell_shape", scene.shape)):
            cells[name][owner] = np.where(taken, index[thing, None, None, None], cells[name][owner])

    cells["cell_digit"] = np.full((w, f, CELLS, CELLS), -1, dtype=np.int8)
    digits = [(i, digit) for i, world in enumerate(scene.worlds) for digit in world.digits]
    if digits:
        owner = np.array([i for i, _ in digits])
        where = np.array([(digit.x, digit.y, *digit.span) for _, digit in digits])[:, :, None]
        height, width, _ = plate(0, size).shape
        x, y = where[:, 0] + scene.nudges[owner, :, 0], where[:, 1] + scene.nudges[owner, :, 1]
        filled = _filled(x, y, np.full(x.shape, 0.5 * width / size), np.full(x.shape, 0.5 * height / size))
        times_s = scene.times_s[owner]
        filled *= ((times_s >= where[:, 2]) & (times_s < where[:, 3]))[..., None, None]
        for i, (world, digit) in enumerate(digits):
            cells["cell_digit"][world][filled[i] > 0] = digit.value
    return cells


def _filled(x: np.ndarray, y: np.ndarray, half_width: np.ndarray, half_height: np.ndarray) -> np.ndarray:
    """Area (N F 4 4) that each box (N F) has in each cell; 0 where less than a fifth of the box and of the cell."""
    edges = np.arange(CELLS) / CELLS
    low, high = (
        np.stack([y - half_height, x - half_width])[..., None],
        np.stack([y + half_height, x + half_width])[..., None],
    )
    rows, columns = np.clip(np.minimum(high, edges + 1 / CELLS) - np.maximum(low, edges), 0, None)  # N F 4
    area = rows[..., :, None] * columns[..., None, :]
    least = 0.2 * np.minimum(4 * half_width * half_height, 1 / CELLS**2)
    return area * (area >= least[..., None, None])
