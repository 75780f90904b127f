"""The tasks of Needle Threading as texts: needles and threads in a haystack, a question, and the true values.

The single needle, its question and its depths are as published; the published data say how many needles and threads
there are, not where they lie, so their places are drawn by ourselves, from the seed. So are the words of their
questions.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from mmllm.errors import InputError
from mmllm.evaluation.threads.haystack import PAIR_CHARACTERS, haystack_text, pairs_of, place_at

Task = Literal["single", "several", "conditional", "thread", "threads"]
Direction = Literal["forward", "backward"]
Placement = Literal["random", "clustered"]
TASKS: tuple[Task, ...] = ("single", "several", "conditional", "thread", "threads")
_SINGLE = "Extract the value corresponding to the specified key in the JSON object."
_SEVERAL = "Write the values of these keys of the JSON object, in this order and nothing else."
_CONDITIONAL = "Write the values of all keys of the JSON object that contain the character {}, and nothing else."
_CHAIN = (
    "The value of a key of the JSON object may itself be a key, whose value may be a key again. Follow each chain to "
    "its end: the last value, which is no key. Write only the last value"
)


@dataclass(frozen=True, kw_only=True)
class TextTask:
    """A haystack with a question, and what is true."""

    task: Task
    haystack: str
    question: str
    values: tuple[str, ...]
    """The true values, in order."""
    pairs: int
    seed: int
    depth: float
    """How deep the pair with the (last) true value lies, from 0 to 100 %."""
    steps: int = 1
    """Pairs of a thread: how often a value is looked up."""
    direction: Direction | None = None
    """Whether each next pair of a thread stands behind the one before, or in front of it."""

    @property
    def prompt(self) -> str:
        """What a model is asked."""
        return f"{self.haystack}\n{self.question}"

    @property
    def ordered(self) -> bool:
        """Whether the order of the values counts."""
        return self.task != "conditional"

    @property
    def characters(self) -> int:
        """The length of the haystack as published data state it."""
        return self.pairs * PAIR_CHARACTERS


def single_needle(seed: int, count: int, depth: float) -> TextTask:
    """The value of the key at a depth, as published."""
    pairs = pairs_of(seed, count)
    place = place_at(depth, count)
    key, value = pairs[place]
    question = f'{_SINGLE} Key: "{key}"\n Corresponding value: '
    return _task("single", seed, pairs, question, [place], [value])


def several_needles(seed: int, count: int, needles: int, placement: Placement = "random") -> TextTask:
    """The values of several keys, which lie anywhere or side by side."""
    pairs = pairs_of(seed, count)
    places = _places(random.Random(f"{seed}/several/{placement}"), count, needles, placement)
    keys = ", ".join(f'"{pairs[place][0]}"' for place in places)
    return _task("several", seed, pairs, f"{_SEVERAL} Keys: {keys}\n Values: ", places, _values(pairs, places))


def conditional_needles(
    seed: int, count: int, needles: int, character: str = "*", placement: Placement = "random"
) -> TextTask:
    """The values of all keys with a character, which takes the place of a key's last one.

    Raises:
        InputError: if every UUID may have the character.
    """
    if len(character) != 1 or character in '0123456789abcdef-"\\':
        raise InputError(f"a condition is one character that no UUID has, such as *, not {character!r}")
    pairs = pairs_of(seed, count)
    places = sorted(_places(random.Random(f"{seed}/conditional/{placement}"), count, needles, placement))
    for place in places:
        key, value = pairs[place]
        pairs[place] = key[:-1] + character, value
    question = f"{_CONDITIONAL.format(character)}\n Values: "
    return _task("conditional", seed, pairs, question, places, _values(pairs, places))


def thread(seed: int, count: int, steps: int, direction: Direction) -> TextTask:
    """The last value of a chain of `steps` pairs, in which each value is the next key."""
    return _threads("thread", seed, count, 1, steps, direction)


def several_threads(seed: int, count: int, threads: int, steps: int, direction: Direction) -> TextTask:
    """The last values of several chains that run through the haystack at once."""
    return _threads("threads", seed, count, threads, steps, direction)


def _threads(task: Task, seed: int, count: int, threads: int, steps: int, direction: Direction) -> TextTask:
    if steps < 1 or threads < 1:
        raise InputError(f"a thread has at least 1 step, and there is at least 1 thread; not {steps} and {threads}")
    pairs = pairs_of(seed, count)
    generator = random.Random(f"{seed}/{task}/{threads}/{steps}/{direction}")
    drawn = _places(generator, count, threads * steps, "random")
    chains = [sorted(drawn[i::threads], reverse=direction == "backward") for i in range(threads)]
    for chain in chains:
        for place, following in pairwise(chain):
            pairs[place] = pairs[place][0], pairs[following][0]
    ends = [chain[-1] for chain in chains]
    keys = ", ".join(f'"{pairs[chain[0]][0]}"' for chain in chains)
    order = " of each chain, in this order" if threads > 1 else ""
    question = f"{_CHAIN}{order}. {'Keys' if threads > 1 else 'Key'}: {keys}\n Last value{'s' * (threads > 1)}: "
    return _task(task, seed, pairs, question, ends, _values(pairs, ends), steps=steps, direction=direction)


def _places(generator: random.Random, count: int, needles: int, placement: Placement) -> list[int]:
    """Different places of pairs.

    Raises:
        InputError: if there are fewer pairs than needles.
    """
    if not 1 <= needles <= count:
        raise InputError(f"{needles} needles do not fit into {count} pairs: from 1 to {count}")
    if placement == "random":
        return generator.sample(range(count), needles)
    first = generator.randint(0, count - needles)
    return list(range(first, first + needles))


def _values(pairs: Sequence[tuple[str, str]], places: Sequence[int]) -> list[str]:
    return [pairs[place][1] for place in places]


def _task(
    task: Task,
    seed: int,
    pairs: Sequence[tuple[str, str]],
    question: str,
    places: Sequence[int],
    values: Sequence[str],
    *,
    steps: int = 1,
    direction: Direction | None = None,
) -> TextTask:
    return TextTask(
        task=task,
        haystack=haystack_text(pairs),
        question=question,
        values=tuple(values),
        pairs=len(pairs),
        seed=seed,
        depth=100 * places[-1] / max(len(pairs) - 1, 1),
        steps=steps,
        direction=direction,
    )


def text_tasks(
    tasks: Sequence[Task],
    *,
    pairs: Sequence[int],
    depths: Sequence[float],
    seeds: Sequence[int],
    needles: int,
    placements: Sequence[Placement],
    character: str,
    threads: int,
    steps: Sequence[int],
) -> Iterator[TextTask]:
    """All tasks of the chosen kinds: needles at each depth, threads of each length in both directions.

    Args:
        tasks: kinds of `TASKS`.
        pairs: lengths of the haystacks in pairs.
        depths: of the single needle, in per cent.
        seeds: repeat numbers; each has its own haystack.
        needles: of several and conditional needles.
        placements: of these needles.
        character: of conditional needles.
        threads: how many run at once in `threads`.
        steps: lengths of threads.
    """
    ways: tuple[Direction, ...] = ("forward", "backward")
    for count in pairs:
        for seed in seeds:
            if "single" in tasks:
                yield from (single_needle(seed, count, depth) for depth in depths)
            if "several" in tasks:
                yield from (several_needles(seed, count, needles, placement) for placement in placements)
            if "conditional" in tasks:
                yield from (conditional_needles(seed, count, needles, character, placement) for placement in placements)
            if "thread" in tasks:
                yield from (thread(seed, count, length, way) for length in steps for way in ways)
            if "threads" in tasks:
                yield from (several_threads(seed, count, threads, length, way) for length in steps for way in ways)
