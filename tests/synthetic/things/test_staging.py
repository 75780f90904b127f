"""The truth against pixels: a picture is seen in exactly the frames that the staging says."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from own_pictures import things_config
from PIL import Image

from mmllm.synthetic.things.clips import sources_of, things_clip
from mmllm.synthetic.things.drawing import draw, draw_pieces
from mmllm.synthetic.things.grounds import Grounds
from mmllm.synthetic.things.pictures import picture_set
from mmllm.synthetic.things.placing import patch_of
from mmllm.synthetic.things.staging import LEAST_VISIBLE, runs, staged
from mmllm.synthetic.things.world import Actor, Key, Shot, ThingsWorld


@pytest.fixture(scope="module")
def config(pictures_folder):
    return things_config(pictures_folder, min_duration_s=10, max_duration_s=18)


def drawn(staging, pictures, size=96, without=None):
    visible = staging.visible.copy()
    if without is not None:
        visible[without] = False
    return np.stack(list(draw(replace(staging, visible=visible), pictures, Grounds(None), size)))


@pytest.mark.parametrize("index", range(6))
def test_an_actor_has_pixels_in_exactly_its_frames(config, index):
    pictures, _ = sources_of(config)
    staging = things_clip(config, "val", index).staging
    whole = drawn(staging, pictures)
    for row in range(len(staging.world.actors)):
        changed = (whole != drawn(staging, pictures, without=row)).any(axis=(1, 2, 3))
        assert np.array_equal(changed, staging.visible[row])


@pytest.mark.parametrize("index", range(6))
def test_what_is_not_drawn_could_hardly_be_seen(config, index):
    """Drawn all the same, in its layer, it would change few pixels of those that it has alone."""
    pictures, _ = sources_of(config)
    staging = things_clip(config, "val", index).staging
    times_s = np.arange(staging.world.frames) / staging.world.fps
    for row, actor in enumerate(staging.world.actors):
        present = (times_s >= actor.presence.start_s - 1e-9) & (times_s < actor.presence.end_s - 1e-9)
        assert not (staging.visible[row] & ~present).any()
        for frame in np.flatnonzero(present & ~staging.visible[row]):
            size = 96
            place = [values[row, frame] for values in (staging.x, staging.y, staging.size, staging.angle)]
            patch, left, top = patch_of(pictures, actor.name, tuple(place), size)
            alone, cover = Image.new("L", (size, size)), np.zeros((size, size))
            alone.paste(patch.getchannel("A"), (left, top))
            for other in np.flatnonzero(staging.visible[:, frame]):
                if other > row:
                    place = [values[other, frame] for values in (staging.x, staging.y, staging.size, staging.angle)]
                    front, x, y = patch_of(pictures, staging.world.actors[other].name, tuple(place), size)
                    layer = Image.new("L", (size, size))
                    layer.paste(front.getchannel("A"), (x, y))
                    cover = np.maximum(cover, np.asarray(layer) / 255)
            seen = (np.asarray(alone) / 255 * (1 - cover)).sum()
            assert seen < (LEAST_VISIBLE + 0.05) * np.asarray(patch.getchannel("A")).sum() / 255


def world_of(*actors, frames=20, **shot):
    return ThingsWorld(
        frames=frames,
        fps=5,
        shots=(Shot(first_frame=0, ground="clouds", ground_seed=1, **shot),),
        actors=actors,
        texture_seed=1,
    )


def still(name, start_s, end_s, x, y, size=0.3, angle=0.0, **fields):
    keys = (Key(start_s, x, y, size, angle), Key(end_s, x, y, size, angle))
    return Actor(name=name, keys=keys, **fields)


def test_a_thing_behind_a_larger_one_is_hidden_and_beside_it_seen(pictures_folder):
    pictures = picture_set(str(pictures_folder))
    keys = [(0.0, 0.2), (1.0, 0.2), (1.4, 0.6), (2.6, 0.6), (3.0, 0.2), (4.0, 0.2)]
    hider = Actor(name="kite", keys=tuple(Key(time_s, x, 0.5, 0.15, 0.0) for time_s, x in keys))
    staging = staged(world_of(hider, still("apple", 0.0, 4.0, 0.6, 0.5, 0.5)), pictures)
    assert staging.visible[1].all()
    assert staging.visible[0, :6].all()
    assert not staging.visible[0, 7:13].any()
    assert staging.visible[0, 15:].all()
    assert staging.spans("kite") == [(0.0, runs(staging.visible[0], 5)[0].end_s), runs(staging.visible[0], 5)[1]]


def test_a_thing_out_of_the_frame_is_not_there(pictures_folder):
    pictures = picture_set(str(pictures_folder))
    keys = (Key(0.0, -0.3, 0.5, 0.2, 0.0), Key(4.0, 0.5, 0.5, 0.2, 0.0))
    staging = staged(world_of(Actor(name="kite", keys=keys)), pictures)
    (span,) = staging.spans("kite")
    assert 0.5 < span.start_s < 2.5
    assert span.end_s == 4.0


def test_a_picture_is_where_its_place_says_turned_clockwise(pictures_folder):
    pictures = picture_set(str(pictures_folder))
    for size in (64, 200):
        for x, y, side, angle in ((0.5, 0.5, 0.3, 0.0), (0.317, 0.633, 0.41, 0.7)):
            patch, left, top = patch_of(pictures, "apple", (x, y, side, angle), size)
            alpha = np.asarray(patch.getchannel("A"), dtype=float)
            rows, columns = np.indices(alpha.shape) + 0.5
            assert (columns * alpha).sum() / alpha.sum() + left == pytest.approx(x * size, abs=0.15)
            assert (rows * alpha).sum() / alpha.sum() + top == pytest.approx(y * size, abs=0.15)
            assert math.sqrt(alpha.sum() / 255) == pytest.approx(side * size / 1.12, rel=0.08)


def test_turning_is_clockwise(tmp_path, pictures_folder):
    import shutil

    folder = tmp_path / "marked"
    shutil.copytree(pictures_folder, folder)
    marked = np.zeros((40, 40, 4), dtype=np.uint8)
    marked[:, :] = (0, 0, 0, 255)
    marked[15:25, 30:] = (255, 0, 0, 255)  # a red mark on the right
    Image.fromarray(marked).save(folder / "apple.png")
    patch, _, _ = patch_of(picture_set(str(folder)), "apple", (0.5, 0.5, 0.8, math.pi / 2), 100)
    red = np.asarray(patch)[..., 0].astype(float)
    row = (np.arange(len(red)) @ red.sum(axis=1)) / red.sum()
    assert row > 0.7 * len(red), "turned by a quarter, the mark is below"


def test_edges_are_smooth(pictures_folder):
    patch, _, _ = patch_of(picture_set(str(pictures_folder)), "apple", (0.5, 0.5, 0.5, 0.4), 128)
    alpha = np.asarray(patch.getchannel("A"))
    assert ((alpha > 20) & (alpha < 235)).sum() > 100


def test_the_camera_moves_near_things_more_than_far_ones(pictures_folder):
    pictures = picture_set(str(pictures_folder))
    near, far = still("kite", 0.0, 4.0, 0.5, 0.4), still("lamp", 0.0, 4.0, 0.5, 0.8, nearness=0.5)
    staging = staged(world_of(near, far, pan=(0.2, 0.0), zoom=(1.0, 1.5)), pictures)
    moved = staging.x[:, 0] - staging.x[:, -1]
    assert moved[0] > moved[1] > 0
    assert staging.size[0, -1] == pytest.approx(1.5 * 0.3)


def test_pieces_are_all_frames(config):
    pictures, grounds = sources_of(config)
    staging = things_clip(config, "train", 1).staging
    pieces = list(draw_pieces(staging, pictures, grounds, 64))
    assert sum(map(len, pieces)) == staging.world.frames
    assert np.array_equal(np.concatenate(pieces), np.stack(list(draw(staging, pictures, grounds, 64))))


def test_each_shot_has_its_own_ground(config):
    pictures, grounds = sources_of(config)
    for index in range(8):
        staging = things_clip(config, "train", index).staging
        starts = [shot.first_frame for shot in staging.world.shots]
        bare = np.stack(list(draw(replace(staging, visible=staging.visible & False), pictures, grounds, 32)))
        change = np.abs(np.diff(bare.astype(int), axis=0)).mean(axis=(1, 2, 3))
        for before, start in pairwise(starts):
            assert change[start - 1] > 3 * np.median(change[before : start - 1] + 0.1)
