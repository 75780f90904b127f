"""Questions about a world of things, and their answers, exact by its staging; each has only one answer.

Time questions have intervals beside their sentence: one, several, or none if what is asked for does not happen. Other
questions have only a short text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, islice, product

import numpy as np

from mmllm.synthetic.questions import NUMBERS
from mmllm.synthetic.things import wording
from mmllm.synthetic.things.content import GAP_S, Content, ThingsQuestion
from mmllm.synthetic.things.sampling import distinct_names
from mmllm.synthetic.things.staging import runs
from mmllm.synthetic.things.world import Actor
from mmllm.synthetic.world import DIRECTIONS, SceneSpan

_ABSENT = 3
"""Names asked for that are not in a clip."""
_SIDES = {"left": ("x", -1), "right": ("x", 1), "above": ("y", -1), "below": ("y", 1)}
_ASIDE = 0.12
"""A thing is clearly left of another if its centre is so much further left, in sides of the frame."""


def ask(content: Content, families: Sequence[str], count: int) -> tuple[list[ThingsQuestion], int]:
    """Up to `count` different questions, drawn evenly from `families`, and how many families have any."""
    pools = {family: list(FAMILIES[family](content)) for family in families}
    answered = sum(len(pool) > 0 for pool in pools.values())
    for pool in pools.values():
        content.random_state.shuffle(pool)
    questions: list[ThingsQuestion] = []
    while len(questions) < count and any(pools.values()):
        open_families = [family for family, pool in pools.items() if pool]
        content.random_state.shuffle(open_families)
        questions += [pools[family].pop() for family in open_families[: count - len(questions)]]
    return questions, answered


def _visible(content: Content) -> Iterator[ThingsQuestion]:
    """When is the elephant on screen?"""
    for name in content.clear:
        yield ThingsQuestion(
            question=content.say(wording.VISIBLE, name),
            answer=content.say(wording.VISIBLE_ANSWERS, name),
            family="visible",
            spans=tuple(content.spans[name]),
        )


def _absent(content: Content) -> Iterator[ThingsQuestion]:
    """When is the elephant on screen, if there is none? When are two there together that never are?"""
    names = content.staging.world.names
    for name in islice(distinct_names(content.random_state, content.pool, names), _ABSENT):
        yield ThingsQuestion(
            question=content.say(wording.VISIBLE, name),
            answer=content.say(wording.ABSENT_ANSWERS, name),
            family="absent",
            spans=(),
        )
    for a, b in combinations(content.spans, 2):
        if not (content.staging.frames(a) & content.staging.frames(b)).any():
            yield ThingsQuestion(
                question=content.say(wording.BOTH, a, b=b),
                answer=content.say(wording.APART_ANSWERS, a, b=b),
                family="absent",
                spans=(),
            )


def _both(content: Content) -> Iterator[ThingsQuestion]:
    """When are the apple and the kite both there?"""
    for pair in combinations(content.spans, 2):
        a, b = content.random_state.sample(pair, 2)
        together = runs(content.staging.frames(a) & content.staging.frames(b), content.staging.world.fps)
        if content.answerable(together):
            yield ThingsQuestion(
                question=content.say(wording.BOTH, a, b=b),
                answer=content.say(wording.BOTH_ANSWERS, a, b=b),
                family="both",
                spans=tuple(together),
            )


def _next(content: Content) -> Iterator[ThingsQuestion]:
    """What comes after the fire engine?

    Asked if the fire engine is there once, nothing else comes meanwhile, and the next thing comes a second before all
    others.
    """
    comings = sorted((span.start_s, name, span) for name, spans in content.spans.items() for span in spans)
    for name in content.clear:
        if len(content.spans[name]) != 1:
            continue
        own = content.spans[name][0]
        meanwhile = [start_s for start_s, other, _ in comings if other != name and own.start_s <= start_s < own.end_s]
        later = [coming for coming in comings if coming[0] >= own.end_s]
        if meanwhile or not later or (len(later) > 1 and later[1][0] - later[0][0] < GAP_S):
            continue
        _, following, span = later[0]
        if content.answerable([span]):
            yield ThingsQuestion(
                question=content.say(wording.NEXT, name),
                answer=content.say(wording.NEXT_ANSWERS, name, b=following),
                family="next",
                spans=(span,),
            )


def _length(content: Content) -> Iterator[ThingsQuestion]:
    """How long is the elephant on screen?"""
    for name in content.clear:
        seconds = round(sum(span.length_s for span in content.spans[name]))
        yield ThingsQuestion(
            question=content.say(wording.LENGTH, name),
            answer=content.say(wording.LENGTH_ANSWERS, name, n=seconds),
            family="length",
            spans=tuple(content.spans[name]),
        )


def _count(content: Content) -> Iterator[ThingsQuestion]:
    """How many times does the elephant appear? How many different things are there? How many at once?"""

    def question(ways: tuple[str, ...], number: int, name: str = "") -> ThingsQuestion:
        answer = f"{NUMBERS[number].capitalize()}."
        return ThingsQuestion(question=content.say(ways, name), answer=answer, family="count", spans=None)

    for name in content.clear:
        if len(content.spans[name]) < len(NUMBERS):
            yield question(wording.TIMES, len(content.spans[name]), name)
    if set(content.clear) == set(content.staging.world.names) and len(content.clear) < len(NUMBERS):
        yield question(wording.DIFFERENT, len(content.clear))
    together = np.sum([content.staging.frames(name) for name in content.spans], axis=0)
    longest = max(runs(together == together.max(), content.staging.world.fps), key=lambda span: span.length_s)
    if longest.length_s >= GAP_S and together.max() < len(NUMBERS):
        yield question(wording.TOGETHER, int(together.max()))


def _place(content: Content) -> Iterator[ThingsQuestion]:
    """What is left of the elephant?

    Asked if one other thing is clearly there whenever both are on screen, and no third one ever is.
    """
    staging = content.staging
    for a in content.clear:
        for side, (axis, sign) in _SIDES.items():
            always, sometimes = [], []
            for b in content.spans:
                if a == b:
                    continue
                places = sign * getattr(staging, axis)
                offset = np.concatenate([
                    (places[other] - places[row])[staging.visible[row] & staging.visible[other]]
                    for row, other in product(staging.rows(a), staging.rows(b))
                ])  # fmt: skip
                if len(offset) >= staging.world.fps and (offset > _ASIDE).all():
                    always.append(b)
                if (offset > -_ASIDE / 2).any():
                    sometimes.append(b)
            if len(always) == 1 and sometimes == always:
                answer = f"The {always[0]}."
                yield ThingsQuestion(
                    question=content.say(wording.PLACE[side], a), answer=answer, family="place", spans=None
                )


def _direct(content: Content) -> Iterator[ThingsQuestion]:
    """When does the elephant move to the left?

    Asked if it can be seen all the while. A thing that also slides in or hides is not asked for where it moves.
    """
    world = content.staging.world
    times_s = np.arange(world.frames) / world.fps
    spans_by_deed: dict[tuple[str, str], list[SceneSpan]] = {}
    unclear = set()
    restless = {actor.name for actor in world.actors if not actor.events and _moves(actor)}
    for row, actor in enumerate(world.actors):
        for event in actor.events:
            deed = (actor.name, event.action)
            spans_by_deed.setdefault(deed, []).append(event.span)
            during = (times_s >= event.span.start_s - 1e-9) & (times_s < event.span.end_s - 1e-9)
            if not content.staging.visible[row, during].all() or (
                event.action in DIRECTIONS and actor.name in restless
            ):
                unclear.add(deed)
    for (name, action), spans in spans_by_deed.items():
        spans.sort()
        if (name, action) not in unclear and content.answerable(spans):
            does, doing = wording.DIRECT[action]
            yield ThingsQuestion(
                question=content.say(wording.DIRECT_QUESTIONS, name, does=does, doing=doing),
                answer=f"The {name} {doing}.",
                family="direct",
                spans=tuple(spans),
            )


def _moves(actor: Actor) -> bool:
    """Whether an actor is in different places."""
    return len({(key.x, key.y) for key in actor.keys}) > 1


def _sound(content: Content) -> Iterator[ThingsQuestion]:
    """When is the low beep heard?"""
    for sound in content.staging.world.sounds:
        if content.answerable([sound.span]):
            yield ThingsQuestion(
                question=content.say(wording.SOUND, sound.name),
                answer=content.say(wording.SOUND_ANSWERS, sound.name),
                family="sound",
                spans=(sound.span,),
            )


FAMILIES: dict[str, Callable[[Content], Iterator[ThingsQuestion]]] = {
    "visible": _visible,
    "absent": _absent,
    "both": _both,
    "next": _next,
    "length": _length,
    "count": _count,
    "place": _place,
    "direct": _direct,
    "sound": _sound,
}
