"""Drawing: frames do not depend on what they are drawn with, and show what the world says."""

import dataclasses
import itertools
import random

import numpy as np
import pytest

from mmllm.synthetic import drawing
from mmllm.synthetic.drawing import draw, draw_stage, plate
from mmllm.synthetic.staging import stage
from mmllm.synthetic.world import COLORS, SHAPES, Digit, SceneEvent, SceneSpan, Thing, World
from mmllm.synthetic.world_sampling import WORLDS, sample_world


def world_of(*things: Thing, digits: tuple[Digit, ...] = (), noise: float = 0.0) -> World:
    return World(frames=50, fps=5, things=things, digits=digits, jitter=0.0, noise=noise, texture_seed=4)


def thing(color: str = "red", shape: str = "circle", **options: object) -> Thing:
    default = {"x": 0.5, "y": 0.5, "radius": 0.13, "angle": 0.0, "presence": SceneSpan(0.0, 10.0), "events": ()}
    return Thing(color=color, shape=shape, **{**default, **options})  # type: ignore[arg-type]


def sampled(seed: int) -> World:
    return sample_world(random.Random(seed), WORLDS["full"], fps=5, shortest_s=10, longest_s=15)


def test_a_frame_is_the_same_alone_in_pieces_and_beside_other_worlds(monkeypatch: pytest.MonkeyPatch) -> None:
    worlds = [sampled(seed) for seed in range(6)]
    index = np.array([[3, 20, 41]] * 6)
    together = draw_stage(stage(worlds, index), 64)
    for i, world in enumerate(worlds):
        whole = draw(world, 64)
        assert whole.shape == (world.frames, 64, 64, 3)
        assert whole.dtype == np.uint8
        assert (whole[index[i]] == together[i]).all()
        monkeypatch.setattr(drawing, "_PIECE_PIXELS", 7 * 64 * 64)
        assert (draw(world, 64) == whole).all()
        monkeypatch.undo()


def test_each_scene_has_a_background_of_its_own() -> None:
    uncut = world_of()
    frames = draw(dataclasses.replace(uncut, cuts=(20, 30)), 64).astype(int)
    assert (frames[:20] == draw(uncut, 64)[:20]).all()
    still = [np.abs(later - earlier).max() for earlier, later in itertools.pairwise(frames)]
    assert [number + 1 for number, change in enumerate(still) if change] == [20, 30]
    index = np.array([[25, 5, 40]])
    together = draw_stage(stage([dataclasses.replace(uncut, cuts=(20, 30))], index), 64)[0]
    assert (together == frames[index[0]]).all()


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_thing_changes_the_frame_only_where_and_when_it_is(color: str, shape: str) -> None:
    visible_thing = thing(color, shape, x=0.3, y=0.6, presence=SceneSpan(2.0, 5.0))
    difference = np.abs(draw(world_of(visible_thing), 64).astype(int) - draw(world_of(), 64)).max(axis=-1)
    assert sorted(set(np.nonzero(difference)[0])) == list(range(10, 25))
    rows, columns = np.nonzero(difference[12] > 8)
    assert np.hypot((columns + 0.5) / 64 - 0.3, (rows + 0.5) / 64 - 0.6).max() < 0.13 * 1.25 + 1 / 64
    area = len(rows) / (np.pi * (0.13 * 64) ** 2)
    assert 0.4 < area < 1.15


def test_shapes_and_colours_can_be_told_apart() -> None:
    pictures = [draw(world_of(thing(color, shape)), 64)[0].astype(int) for color in COLORS for shape in SHAPES]
    for i, picture in enumerate(pictures):
        for other in pictures[:i]:
            assert np.abs(picture - other).max(axis=-1).astype(bool).sum() >= 30


def test_a_white_thing_keeps_its_own_colour_at_the_rim() -> None:
    whitened = [
        draw(world_of(thing(color, events=(SceneEvent(action="white", span=SceneSpan(2.0, 4.0), amount=0.0),))), 64)[15]
        for color in ("red", "blue")
    ]
    assert (whitened[0][36, 32] > 230).all()
    red_minus_blue = whitened[0].astype(int) - whitened[1]
    assert red_minus_blue[..., 0].max() > 100
    assert red_minus_blue[..., 2].min() < -100


def test_a_blinking_thing_is_dimmed_but_never_gone() -> None:
    blinking = thing(events=(SceneEvent(action="blink", span=SceneSpan(2.0, 6.0), amount=0.0),))
    change = np.abs(draw(world_of(blinking), 64).astype(int) - draw(world_of(), 64)).max(axis=(1, 2, 3))
    assert (change > 8).all()
    assert change[10:30].min() < 0.3 * change[0]
    assert (change[30:] == change[0]).all()


def test_digits_are_drawn_where_and_when_they_are_shown() -> None:
    digit = Digit(value=7, region=0, x=0.25, y=0.25, span=SceneSpan(2.0, 4.0))
    frames = draw(world_of(digits=(digit,)), 64)
    assert (frames[12, 7:25, 9:23] == plate(7, 64)).all()
    assert (frames[9] == frames[21]).all()
    assert len({plate(value, 64).tobytes() for value in range(10)}) == 10


@pytest.mark.parametrize("size", [32, 64, 96, 336])
def test_a_world_can_be_drawn_at_any_size(size: int) -> None:
    world = dataclasses.replace(sampled(2), frames=3)
    small, large = draw(world, 64).astype(float), draw(world, size).astype(float)
    assert large.shape == (3, size, size, 3)
    assert np.abs(small.mean(axis=(0, 1, 2)) - large.mean(axis=(0, 1, 2))).max() < 4


def test_noise_is_fresh_on_each_frame_and_as_strong_as_it_is_said_to_be() -> None:
    noise = draw(world_of(noise=3.0), 64).astype(float) - draw(world_of(), 64)
    assert noise.std() == pytest.approx(3.0, rel=0.1)
    assert abs((noise[1:] * noise[:-1]).mean()) < 0.2


def test_frames_as_encoded_share_their_colour_in_twos_and_keep_their_grey() -> None:
    world = world_of(thing(), thing("blue", "square", x=0.8, y=0.2))
    scene = stage([world], np.array([[0, 9]]))
    plain, encoded = draw_stage(scene, 64).astype(int), draw_stage(scene, 64, as_encoded=True).astype(int)
    weights = np.array([0.299, 0.587, 0.114])
    inside = np.s_[:, :, 28:36, 28:36]
    assert np.abs((plain - encoded)[inside] @ weights).mean() < 1.2  # the noise that encoding itself makes
    blueness = encoded[..., 2] - encoded @ weights
    assert np.abs(blueness[..., ::2, ::2] - blueness[..., 1::2, 1::2]).max() < 3
    assert np.abs(plain - encoded).max() > 20
