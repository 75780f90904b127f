"""Targets that describe synthetic frames, to train and evaluate a frame encoder, and single scenes for training.

A scene is three frames of a new world, as far apart as frames that are sampled from a clip. Its targets describe the
middle frame. A scene costs a hundredth of a clip. An encoder gets each scene only once, so it cannot memorise them.

All targets can be seen in the pixels: a white thing keeps a rim and a hand of its own colour, and a blinking thing is
dimmed but not hidden. Only blinking and hopping may be invisible in three frames.

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
"""Rows and columns of the grid of cells, into which a frame is divided for some targets."""

_ANY_TIME, _AT_EDGE = 0.2, 0.4
"""Fractions of the scenes whose time is drawn from the whole clip, and from the start or the end of an interval. The
others are drawn from inside of an interval."""


def scene_batch(
    config: SyntheticConfig, seed: int, count: int, *, sampled: tuple[int, int] = (25, 100)
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Frames and targets of `count` independent scenes, which look like decoded frames of the clips of `config`.

    The same arguments give the same scenes. No scene is part of a clip.

    Args:
        config: which worlds are drawn, and the size of frames.
        seed: which scenes; for example a training step's number.
        count: N, number of scenes.
        sampled: lowest and highest number of frames that are sampled from a clip. The three frames of a scene are
            D / n seconds apart, where n is drawn from this range and D is the duration of the scene's world.

    Returns:
        Frames, uint8 (N 3 S S 3) in RGB, and the targets of the middle frames: those of `frame_targets`, and
        visible_begin, visible_end, events_begin, events_end. These are true if a thing is visible or does something in
        the middle frame, but not in the frame before (begin) or after (end).

    Raises:
        InputError: if `sampled` is not an ascending range from 1.
    """
    fewest, most = sampled
    if not 1 <= fewest <= most:
        raise InputError(f"sampled must be two numbers of frames, at least 1 and in ascending order, not {sampled}")
    random_state = random.Random(f"{config.seed}/scenes/{seed}")
    worlds, triplets = [], np.empty((count, 3), dtype=np.int64)
    for triplet in triplets:
        world = fresh_world(config, random_state)
        spacing = world.frames / math.exp(random_state.uniform(math.log(fewest), math.log(most)))
        middle = _sampled_frame(world, spacing, random_state)
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
    """Targets that describe a clip of `world` at N times. Axes of colours have all `COLORS`, in this order.

    - visible, white: bool (N colours). A dimmed or partly covered thing is visible, too.
    - x, y, radius: float32 (N colours), in fractions of the frame's side; 0 if not visible.
    - shape: int8 (N colours), index in `SHAPES`; -1 if not visible.
    - events: bool (N colours actions), whether the thing is doing each of `ACTIONS`.
    - cell_color, cell_shape, cell_digit: int8 (N 4 4), for the thing or digit with the largest area in each cell of the
      frame, rows from the top: index in `COLORS`, index in `SHAPES`, or the digit; -1 for none.
    - cell_events: bool (N 4 4 actions), what the thing with the largest area in the cell is doing.

    Args:
        world: what the clip shows.
        times_s: N times in seconds; the frame shown at each time is described.
        size: side of a frame in pixels, on which the size of digits depends.
    """
    frames = np.floor(np.asarray(times_s, dtype=np.float64) * world.fps + 1e-6).astype(np.int64)
    frames = np.clip(frames, 0, world.frames - 1)
    return {name: values[0] for name, values in describe(stage([world], frames[None]), size).items()}


def _sampled_frame(world: World, spacing: float, random_state: random.Random) -> int:
    """A randomly drawn frame, mostly one in which something happens, starts or ends.

    `spacing` is the distance of sampled frames. A frame at the start or the end of an interval is less than this away
    from it.
    """
    spans = [event.span for thing in world.things for event in thing.events]
    spans += [thing.presence for thing in world.things if thing.presence != world.whole]
    spans += [digit.span for digit in world.digits]
    draw = random_state.random()
    span: SceneSpan = world.whole if draw < _ANY_TIME or not spans else random_state.choice(spans)
    first, last = round(span.start_s * world.fps), round(span.end_s * world.fps) - 1
    if _ANY_TIME <= draw < _ANY_TIME + _AT_EDGE:
        reach = min(math.ceil(spacing) - 1, last - first)
        first, last = random_state.choice([(first, first + reach), (last - reach, last)])
    return random_state.randint(first, last)


def describe(scene: Stage, size: int) -> dict[str, np.ndarray]:
    """The targets of all frames of a stage, as in `frame_targets`, but with the axes W F in place of N."""
    w, f = scene.frame_index.shape
    now, owner, color = scene.now, scene.world_index, scene.color
    targets: dict[str, np.ndarray] = {}
    for name, values, dtype, absent in (
        ("visible", now.visible, bool, False),
        ("white", now.white, bool, False),
        ("x", now.x, np.float32, 0),
        ("y", now.y, np.float32, 0),
        ("radius", now.radius, np.float32, 0),
        ("shape", scene.shape[:, None], np.int8, -1),
    ):
        targets[name] = np.full((w, f, len(COLORS)), absent, dtype=dtype)
        targets[name][owner, :, color] = np.where(now.visible, values, absent)

    targets["events"] = np.zeros((w, f, len(COLORS), len(ACTIONS)), dtype=bool)
    times_s = scene.times_s
    for i, thing in enumerate(scene.things):
        for event in thing.events:
            during = (times_s[owner[i]] >= event.span.start_s) & (times_s[owner[i]] < event.span.end_s)
            targets["events"][owner[i], :, color[i], ACTIONS.index(event.action)] = during
    cells = _cells(scene, size)
    color = cells["cell_color"].astype(np.int64).reshape(w, f, CELLS * CELLS, 1)
    cell_events = np.take_along_axis(targets["events"], np.maximum(color, 0), axis=2) & (color >= 0)
    cells["cell_events"] = cell_events.reshape(w, f, CELLS, CELLS, len(ACTIONS))
    return targets | cells


def _cells(scene: Stage, size: int) -> dict[str, np.ndarray]:
    """Colour, shape and digit with the largest area in each cell of the frame, int8 (W F 4 4)."""
    # 1. Things: a later layer wins over earlier ones if it fills at least the same area.
    w, f = scene.frame_index.shape
    cells = {name: np.full((w, f, CELLS, CELLS), -1, dtype=np.int8) for name in ("cell_color", "cell_shape")}
    largest = np.zeros((w, f, CELLS, CELLS))
    area = _cell_areas(scene.now.x, scene.now.y, 0.85 * scene.now.radius, 0.85 * scene.now.radius)  # N F 4 4
    area *= scene.now.visible[..., None, None]
    for layer in range(scene.layer.max(initial=-1) + 1):
        thing = np.flatnonzero(scene.layer == layer)
        owner = scene.world_index[thing]
        is_largest = (area[thing] > 0) & (area[thing] >= largest[owner])
        largest[owner] = np.where(is_largest, area[thing], largest[owner])
        for name, index in (("cell_color", scene.color), ("cell_shape", scene.shape)):
            cells[name][owner] = np.where(is_largest, index[thing, None, None, None], cells[name][owner])

    # 2. Digits, which have targets of their own.
    cells["cell_digit"] = np.full((w, f, CELLS, CELLS), -1, dtype=np.int8)
    digits = [(i, digit) for i, world in enumerate(scene.worlds) for digit in world.digits]
    if digits:
        owner = np.array([i for i, _ in digits])
        place_and_span = np.array([(digit.x, digit.y, *digit.span) for _, digit in digits])[:, :, None]
        height, width, _ = plate(0, size).shape
        x = place_and_span[:, 0] + scene.nudges[owner, :, 0]
        y = place_and_span[:, 1] + scene.nudges[owner, :, 1]
        area = _cell_areas(x, y, np.full(x.shape, 0.5 * width / size), np.full(x.shape, 0.5 * height / size))
        times_s = scene.times_s[owner]
        area *= ((times_s >= place_and_span[:, 2]) & (times_s < place_and_span[:, 3]))[..., None, None]
        for i, (world, digit) in enumerate(digits):
            cells["cell_digit"][world][area[i] > 0] = digit.value
    return cells


def _cell_areas(x: np.ndarray, y: np.ndarray, half_width: np.ndarray, half_height: np.ndarray) -> np.ndarray:
    """Area (N F 4 4) of each box (N F) in each cell; 0 if less than a fifth of the smaller one of box and cell."""
    edges = np.arange(CELLS) / CELLS
    low, high = (
        np.stack([y - half_height, x - half_width])[..., None],
        np.stack([y + half_height, x + half_width])[..., None],
    )
    rows, columns = np.clip(np.minimum(high, edges + 1 / CELLS) - np.maximum(low, edges), 0, None)  # N F 4
    area = rows[..., :, None] * columns[..., None, :]
    least = 0.2 * np.minimum(4 * half_width * half_height, 1 / CELLS**2)
    return area * (area >= least[..., None, None])
