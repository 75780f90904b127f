"""Worlds: what is promised of them holds for many, in each preset."""

import itertools
import random

import numpy as np
import pytest

from mmllm.synthetic.world import SceneEvent, SceneSpan, Thing, World, camera, state
from mmllm.synthetic.world_sampling import WORLDS, sample_world

PRESETS = tuple(WORLDS)


def worlds(preset: str, count: int = 80, **options: bool) -> list[World]:
    rules = WORLDS[preset]
    return [
        sample_world(random.Random(f"{preset} {i}"), rules, fps=5, shortest_s=20, longest_s=60, **options)
        for i in range(count)
    ]


def on_a_frame(span: SceneSpan) -> bool:
    return all(abs(time_s * 5 - round(time_s * 5)) < 1e-9 for time_s in span)


@pytest.mark.parametrize("preset", PRESETS)
def test_things_are_within_the_rules(preset: str) -> None:
    rules = WORLDS[preset]
    for world in worlds(preset):
        assert rules.fewest_things <= len(world.things) <= rules.most_things
        assert len({thing.color for thing in world.things}) == len(world.things)
        assert {thing.color for thing in world.things} <= set(rules.colors)
        assert {thing.shape for thing in world.things} <= set(rules.shapes)
        assert {event.action for thing in world.things for event in thing.events} <= set(rules.actions)
        assert 20 <= world.duration_s <= 60


@pytest.mark.parametrize("preset", PRESETS)
def test_events_are_short_apart_and_while_the_thing_is_there(preset: str) -> None:
    for world in worlds(preset):
        coming_and_going = [thing for thing in world.things if thing.presence != world.whole]
        assert 1 <= len(coming_and_going) < len(world.things)
        for thing in world.things:
            assert len({event.action for event in thing.events}) == len(thing.events) <= 3
            spans = [event.span for event in thing.events]
            spans += [thing.presence] if thing in coming_and_going else []
            for span in spans:
                assert on_a_frame(span)
                assert max(2.0, 0.06 * world.duration_s) - 1e-9 <= span.length_s <= 0.35 * world.duration_s + 1e-9
            assert all(thing.presence.covers(event.span) for event in thing.events)
            for early, late in itertools.pairwise(thing.events):
                assert late.span.start_s >= early.span.end_s + 1.0 - 1e-9


def test_scenes_have_different_lengths_and_things_come_and_go_at_cuts() -> None:
    ratios = []
    for world in worlds("scenes"):
        edges = [0, *world.cuts, world.frames]
        lengths = [end - start for start, end in itertools.pairwise(edges)]
        assert 5 <= len(lengths) <= 8
        assert min(lengths) >= max(2.0 * 5, 0.06 * world.frames) - 1
        ratios.append(max(lengths) / min(lengths))
        for thing in world.things:
            assert {round(time_s * 5) for time_s in thing.presence} <= set(edges)
    assert np.median(ratios) > 2.5


def test_other_presets_have_no_cuts() -> None:
    assert not any(world.cuts for preset in PRESETS if preset != "scenes" for world in worlds(preset, 10))


@pytest.mark.parametrize("preset", PRESETS)
def test_things_stay_in_the_frame(preset: str) -> None:
    for world in worlds(preset):
        times_s = np.broadcast_to(np.arange(world.frames) / world.fps, (len(world.things), world.frames))
        now = state(world.things, times_s)
        for place in (now.x, now.y):
            assert (place - now.radius > 0).all()
            assert (place + now.radius < 1).all()
        assert np.abs(camera(world)).max() <= 3 / 64


def test_every_action_ends_at_rest_and_changes_what_it_should() -> None:
    span = SceneSpan(2.0, 6.0)
    times_s = np.arange(0, 50)[None] / 5
    changes = {"left": "x", "right": "x", "up": "y", "down": "y", "spin": "angle", "grow": "radius"}
    changes |= {"shrink": "radius", "bounce": "y", "blink": "opacity", "white": "white"}
    for action, changed in changes.items():
        amount = 2.0 if action == "spin" else 0.1
        event = SceneEvent(action=action, span=span, amount=amount)
        thing = Thing(
            color="red",
            shape="circle",
            x=0.5,
            y=0.5,
            radius=0.12,
            angle=0.1,
            presence=SceneSpan(0.0, 10.0),
            events=(event,),
        )
        now = state([thing], times_s)
        still = state([Thing(**{**vars(thing), "events": ()})], times_s)
        for name in ("x", "y", "radius", "angle", "white", "opacity"):
            values, before = getattr(now, name)[0], getattr(still, name)[0]
            assert (values[:10] == before[:10]).all(), (action, name)
            assert np.ptp(values[30:].astype(float)) == 0, (action, name)
            assert (np.ptp(values.astype(float)) > 0) == (name == changed), (action, name)
        if action in ("spin", "bounce", "blink", "white"):
            values, before = getattr(now, changed)[0], getattr(still, changed)[0]
            turns = 2 * np.pi * amount if action == "spin" else 0.0
            assert values[30] == pytest.approx(before[30] + turns)


def test_without_actions_everything_comes_and_goes() -> None:
    for world in worlds("easy", 20, actions=False, digits=False):
        assert world.digits == ()
        assert all(thing.events == () and thing.presence != world.whole for thing in world.things)


def test_the_camera_is_steady_by_default_and_unsteady_in_the_hard_world() -> None:
    def moves(preset: str) -> float:
        return float(np.mean([(np.diff(camera(world), axis=0) != 0).any(axis=1).mean() for world in worlds(preset)]))

    assert 0.01 < moves("easy") < 0.06
    assert 0.2 < moves("hard") < 0.32


def test_spans_share_what_both_have() -> None:
    assert SceneSpan(1.0, 4.0).overlap(SceneSpan(3.0, 9.0)) == (3.0, 4.0)
    assert SceneSpan(1.0, 4.0).overlap(SceneSpan(4.0, 9.0)) is None
    assert SceneSpan(1.0, 4.0).covers(SceneSpan(1.0, 3.0))
    assert not SceneSpan(1.0, 4.0).covers(SceneSpan(0.5, 3.0))
