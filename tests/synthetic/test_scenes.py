"""Scenes and targets: repeatable, true to the pixels, and close to what a decoded clip looks like."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from mmllm.errors import InputError
from mmllm.synthetic.clips import SyntheticConfig, clip
from mmllm.synthetic.drawing import draw, draw_stage
from mmllm.synthetic.rendering import encode
from mmllm.synthetic.scenes import frame_targets, scene_batch
from mmllm.synthetic.staging import stage
from mmllm.synthetic.world import ACTIONS, COLORS, SHAPES
from mmllm.synthetic.world_sampling import WORLDS

FULL = SyntheticConfig(world="full")


def test_scenes_are_a_function_of_their_seed_alone() -> None:
    frames, targets = scene_batch(FULL, 3, 12)
    again, same = scene_batch(FULL, 3, 12)
    fewer, some = scene_batch(FULL, 3, 5)
    other, _ = scene_batch(FULL, 4, 12)
    assert (frames == again).all()
    assert (frames[:5] == fewer).all()
    assert (frames != other).any(axis=(1, 2, 3, 4)).all()
    for name, values in targets.items():
        assert (values == same[name]).all()
        assert (values[:5] == some[name]).all()


def test_shapes_types_and_what_is_absent() -> None:
    frames, targets = scene_batch(FULL, 0, 64)
    assert frames.shape == (64, 3, 64, 64, 3)
    assert frames.dtype == np.uint8
    shapes = {name: (values.shape[1:], values.dtype.name) for name, values in targets.items()}
    grid = ((4, 4), "int8")
    expected = {
        "visible": ((6,), "bool"),
        "white": ((6,), "bool"),
        "x": ((6,), "float32"),
        "y": ((6,), "float32"),
        "radius": ((6,), "float32"),
        "shape": ((6,), "int8"),
        "events": ((6, 10), "bool"),
        "cell_color": grid,
        "cell_shape": grid,
        "cell_digit": grid,
        "cell_events": ((4, 4, 10), "bool"),
    }
    assert {name: shapes[name] for name in expected} == expected
    absent = ~targets["visible"]
    assert (targets["shape"][absent] == -1).all()
    assert not targets["white"][absent].any()
    assert not targets["events"][absent].any()
    assert ((targets["cell_color"] < 0) == (targets["cell_shape"] < 0)).all()
    present = targets["visible"]
    for name in ("x", "y"):
        assert ((targets[name][present] > 0) & (targets[name][present] < 1)).all()
    assert ((targets["shape"][present] >= 0) & (targets["shape"][present] < len(SHAPES))).all()


def test_every_state_occurs_often_enough_to_be_learned() -> None:
    _, targets = scene_batch(FULL, 1, 600)
    assert (targets["events"].any(axis=1).mean(axis=0) > 0.04).all()
    assert (targets["visible"].mean(axis=0) > 0.2).all()
    assert all((targets["cell_digit"] == value).any() for value in range(10))
    assert all((targets["cell_shape"] == shape).any() for shape in range(len(SHAPES)))


def test_an_easy_scene_has_easy_colours_shapes_and_actions_at_the_same_places() -> None:
    _, targets = scene_batch(SyntheticConfig(world="easy"), 1, 100)
    easy = WORLDS["easy"]
    assert not targets["visible"][:, [COLORS.index(c) for c in COLORS if c not in easy.colors]].any()
    assert not targets["events"][..., [ACTIONS.index(a) for a in ACTIONS if a not in easy.actions]].any()
    assert targets["shape"].max() < len(easy.shapes)


def test_the_spacing_is_that_of_sampled_frames() -> None:
    frames, _ = scene_batch(FULL, 0, 20, sampled=(100_000, 100_000))
    assert (frames == frames[:, :1]).all()
    with pytest.raises(InputError, match="sampled"):
        scene_batch(FULL, 0, 4, sampled=(50, 25))


def test_targets_of_a_clip_are_where_its_pixels_are() -> None:
    checked = 0
    for index in range(6):
        world = dataclasses.replace(clip(FULL, "train", index)[0], noise=0.0, digits=())
        times_s = np.arange(0, world.frames, 17) / world.fps
        targets = frame_targets(world, times_s)
        frames = draw(world, 64)[::17].astype(int)
        for thing in world.things:
            others = tuple(other for other in world.things if other is not thing)
            without = draw(dataclasses.replace(world, things=others), 64)[::17].astype(int)
            change = np.abs(frames - without).max(axis=-1)
            color = COLORS.index(thing.color)
            assert not change[~targets["visible"][:, color]].any()
            for i in np.flatnonzero(targets["visible"][:, color]):
                rows, columns = np.nonzero(change[i] > 6)
                if len(rows) > 40:  # otherwise mostly behind something
                    x, y = targets["x"][i, color] * 64, targets["y"][i, color] * 64
                    far = np.hypot(columns + 0.5 - x, rows + 0.5 - y).max() / 64
                    assert far <= 1.25 * targets["radius"][i, color] + 1.5 / 64
                    checked += 1
    assert checked > 60


def test_events_of_a_clip_are_flagged_from_their_start_up_to_their_end() -> None:
    world, _ = clip(FULL, "train", 2)
    targets = frame_targets(world, np.arange(world.frames) / world.fps)
    events = [(thing, event) for thing in world.things for event in thing.events]
    assert targets["events"].sum() == sum(round(event.span.length_s * world.fps) for _, event in events)
    for thing, event in events:
        flags = targets["events"][:, COLORS.index(thing.color), ACTIONS.index(event.action)]
        frames = np.flatnonzero(flags)
        assert (frames[0] / world.fps, (frames[-1] + 1) / world.fps) == pytest.approx(tuple(event.span))


def test_cells_name_what_fills_them() -> None:
    config = SyntheticConfig(families=("direct", "digit"))
    for index in range(8):
        world, _ = clip(config, "train", index)
        for time_s in np.arange(0, world.duration_s, 3.1):
            now = {name: values[0] for name, values in frame_targets(world, np.array([time_s])).items()}
            for color in np.flatnonzero(now["visible"]):
                if now["radius"][color] > 0.14 and np.sum(now["visible"]) == 1:
                    cell = int(now["y"][color] * 4), int(now["x"][color] * 4)
                    assert now["cell_color"][cell] == color
                    assert now["cell_shape"][cell] == now["shape"][color]
            for row, column in np.argwhere(now["cell_color"] >= 0):
                assert (now["cell_events"][row, column] == now["events"][now["cell_color"][row, column]]).all()
            assert not now["cell_events"][now["cell_color"] < 0].any()
            visible_digits = {d.value for d in world.digits if d.span.start_s <= time_s + 1e-9 < d.span.end_s}
            assert set(now["cell_digit"].ravel()) - {-1} == visible_digits


def test_scene_frames_look_more_like_decoded_ones_than_plain_ones_do(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    for index in range(3):
        world = dataclasses.replace(clip(FULL, "val", index)[0], noise=0.0)
        plain = draw(world, 64)
        encoded = draw_stage(stage([world], np.arange(world.frames)[None]), 64, as_encoded=True)[0]
        encode([plain], 64, 5, tmp_path / "clip.mp4", crf=18)
        with av.open(str(tmp_path / "clip.mp4")) as container:
            decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        things = (np.abs(plain.astype(int) - encoded) > 8).any(axis=-1)
        error = [np.abs(frames.astype(int) - decoded)[things].mean() for frames in (plain, encoded)]
        assert error[1] < 0.75 * error[0]
