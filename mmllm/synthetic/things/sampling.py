"""Drawing random worlds of things: shots, who comes when, and what they do there.

All times are whole frames here, so that every label is exact to the frame.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

from mmllm.synthetic.things.acting import Part, acted, hiding_pair
from mmllm.synthetic.things.world import Actor, Shot, ThingsWorld
from mmllm.synthetic.world_sampling import random_sounds, span_bounds

_SHOT_S = 6.0
_MOST_SHOTS, _MOST_NAMES = 5, 6
_LEFT_OUT = 2
"""So many names, at least, are not in a clip, so that it can be asked for them."""
_AGAIN, _RETURNS, _HIDES, _STILL = 0.25, 0.2, 0.4, 0.4
"""How often a name of an earlier shot comes again, a thing leaves its shot and returns, a thing hides behind another
where there is time, and a camera stands still."""


@dataclass(frozen=True, kw_only=True)
class Stock:
    """From what a world is made."""

    names: Sequence[str]
    grounds: Sequence[str]
    solid: Callable[[str], bool]
    """Whether another picture can hide behind the one of this name."""


def sample_things(
    random_state: random.Random, stock: Stock, *, fps: int, shortest_s: float, longest_s: float, sounds: bool
) -> ThingsWorld:
    """A random world.

    Args:
        random_state: the source of all random numbers.
        stock: from what it is made.
        fps: frames a second.
        shortest_s, longest_s: range of the duration in seconds.
        sounds: whether something is heard.
    """
    frames = round(random_state.uniform(shortest_s, longest_s) * fps)
    limits = span_bounds(frames, fps)
    edges = [0, *_cuts(random_state, frames, fps, limits[0]), frames]
    fresh = islice(distinct_names(random_state, stock.names), len(stock.names) - _LEFT_OUT)
    shots: list[Shot] = []
    actors: list[Actor] = []
    used: list[str] = []
    for first, last in pairwise(edges):
        most = min(2 + round((last - first) / (_SHOT_S * fps)), _MOST_NAMES)
        cast = _cast(random_state, fresh, used, random_state.randint(most // 2, most))
        used += [name for name in cast if name not in used]
        actors += _shot_actors(random_state, cast, stock.solid, (first, last), fps, limits)
        shots.append(_shot(random_state, stock.grounds, first))
    return ThingsWorld(
        frames=frames,
        fps=fps,
        shots=tuple(shots),
        actors=tuple(sorted(actors, key=lambda actor: actor.nearness)),
        texture_seed=random_state.getrandbits(48),
        sounds=random_sounds(random_state, frames, fps) if sounds else (),
    )


def distinct_names(random_state: random.Random, names: Sequence[str], taken: Sequence[str] = ()) -> Iterator[str]:
    """Names in random order that share no word with each other or with those taken, so that none is meant twice."""
    words = {word for name in taken for word in name.split()}
    for name in random_state.sample(list(names), len(names)):
        if words.isdisjoint(name.split()):
            words |= set(name.split())
            yield name


def _cuts(random_state: random.Random, frames: int, fps: int, shortest: int) -> list[int]:
    """Frames with which shots begin, without the first; each shot has room for the shortest interval and a second."""
    least = max(shortest + fps, round(0.6 * _SHOT_S * fps))
    count = random_state.randint(1, max(1, min(_MOST_SHOTS, int(frames / (_SHOT_S * fps)))))
    shares = [random_state.uniform(0.2, 1.0) for _ in range(count)]
    slack, edge, cuts = frames - count * least, 0.0, []
    for share in shares[:-1]:
        edge += least + slack * share / sum(shares)
        cuts.append(round(edge))
    return cuts


def _cast(random_state: random.Random, fresh: Iterator[str], used: Sequence[str], count: int) -> list[str]:
    """The names of a shot: mostly new ones, and some of earlier shots."""
    returning = [name for name in used if random_state.random() < _AGAIN / max(1, len(used) / 2)][: count - 1]
    return [*returning, *islice(fresh, count - len(returning))] or list(used[:1])


def _shot(random_state: random.Random, grounds: Sequence[str], first: int) -> Shot:
    """A shot's ground and camera."""
    ground, seed = random_state.choice(list(grounds)), random_state.getrandbits(48)
    if random_state.random() < _STILL:
        return Shot(first_frame=first, ground=ground, ground_seed=seed)
    pan = (random_state.uniform(-0.14, 0.14), random_state.uniform(-0.06, 0.06))
    near = random_state.uniform(1.0, 1.18)
    zoom = (1.0, near) if random_state.random() < 0.5 else (near, 1.0)
    return Shot(first_frame=first, ground=ground, ground_seed=seed, pan=pan, zoom=zoom)


def _shot_actors(
    random_state: random.Random,
    cast: Sequence[str],
    solid: Callable[[str], bool],
    shot: tuple[int, int],
    fps: int,
    limits: tuple[int, int],
) -> list[Actor]:
    """The actors of a shot from frame `shot[0]` to `shot[1]`."""
    actors: list[Actor] = []
    remaining = list(cast)
    covers = [name for name in cast if solid(name)]
    if len(cast) > 1 and covers and random_state.random() < _HIDES:
        cover = covers[0]
        hider = next(name for name in cast if name != cover)
        pair = hiding_pair(random_state, hider, cover, Part(*shot, fps), limits)
        if pair:
            actors += pair
            remaining = [name for name in cast if name not in (cover, hider)]
    for name in remaining:
        for first, last in _presences(random_state, shot, fps, limits):
            actors.append(acted(random_state, name, Part(first, last, fps), limits, actors))
    return actors


def _presences(
    random_state: random.Random, shot: tuple[int, int], fps: int, limits: tuple[int, int]
) -> list[tuple[int, int]]:
    """When a thing is there: an interval of frames within the shot, or two with a gap of two seconds or more."""
    shortest, longest = limits
    gap = 2 * fps
    room = shot[1] - shot[0]
    if room >= 2 * shortest + gap and random_state.random() < _RETURNS:
        longest = min(longest, 2 * shortest)
        lengths = [_length(random_state, shortest, min(longest, (room - gap) // 2)) for _ in range(2)]
        slack = room - gap - sum(lengths)
        before = random_state.randint(0, slack)
        between = random_state.randint(0, slack - before)
        first = shot[0] + before
        second = first + lengths[0] + gap + between
        return [(first, first + lengths[0]), (second, second + lengths[1])]
    length = _length(random_state, shortest, min(longest, room))
    first = random_state.randint(shot[0], shot[1] - length)
    if random_state.random() < 0.5:  # many things come or go with a cut
        first = shot[0] if random_state.random() < 0.5 else shot[1] - length
    return [(first, first + length)]


def _length(random_state: random.Random, shortest: int, longest: int) -> int:
    """A random number of frames, log-uniform."""
    return round(math.exp(random_state.uniform(math.log(shortest), math.log(max(longest, shortest)))))
