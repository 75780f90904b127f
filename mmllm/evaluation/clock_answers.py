"""Which known faults explain when a model says that things happen: a robust fit to answers with noise and blunders.

P points: the beginning and the end of each event with an answer
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mmllm.evaluation.clock_faults import suspicions
from mmllm.evaluation.clock_situations import FAULTS, Situation, Suspicion, faulty_times
from mmllm.times.answers import Span

MOST_FAULTS = 3
FEWEST_ANSWERS = 6
"""With fewer events, nothing can be told."""
_COST = 6.0
"""A fault must make the answers exp(6) times as likely."""
_BLUNDERS = 0.1
"""Share of answers that may be anywhere in the video."""
_SHUFFLES, _CHANCE = 999, 0.01
_SMALLEST_NOISE_S = 0.05


@dataclass(frozen=True, kw_only=True)
class AnsweredEvent:
    """An event, and when a model says that it happens."""

    situation: Situation
    truth: Span
    answer: Span | None
    """None if the answer names no time."""
    question: str = ""
    text: str = ""
    """What the model wrote."""


@dataclass(frozen=True, kw_only=True)
class AnswerDiagnosis:
    """What is wrong with answered times."""

    sees_clock: bool
    """Whether answers follow the events at all; if not, nothing can be told."""
    reason: str
    """Why nothing can be told; empty if something can."""
    faults: Suspicion = field(default_factory=dict)
    undecided: tuple[str, ...] = ()
    """Faults that are too small beside the noise of these answers to be seen or excluded."""
    noise_s: float | None = None
    """Mean distance of answers from where they should be, blunders left out."""
    offset_s: float | None = None
    """Median of what answers are late, with the faults taken off."""
    answered: int = 0
    asked: int = 0


def diagnose_answers(events: Sequence[AnsweredEvent]) -> AnswerDiagnosis:
    """The faults that make the answers clearly more likely, and those that cannot be seen in them."""
    said = [event for event in events if event.answer is not None]
    if len(said) < FEWEST_ANSWERS:
        reason = f"{len(said)} of {len(events)} answers name a time; at least {FEWEST_ANSWERS} are needed"
        return AnswerDiagnosis(sees_clock=False, reason=reason, answered=len(said), asked=len(events))
    if not _follows(said):
        reason = "the model does not see the clock: its answers do not follow the events"
        return AnswerDiagnosis(sees_clock=False, reason=reason, answered=len(said), asked=len(events))
    possible = {name for event in said for name in event.situation.possible} - {"whole seconds"}
    scored = {
        frozenset(suspicion.items()): _fit(said, suspicion)[0] - _COST * len(suspicion)
        for suspicion in suspicions(MOST_FAULTS, possible)
    }
    best = max(scored, key=lambda faults: scored[faults])
    faults = {name: form for name, form in dict(best).items()}
    others = {name: max(score for key, score in scored.items() if name in dict(key)) for name in possible}
    undecided = [name for name in FAULTS if name in others and name not in faults and others[name] > scored[best] - 2 * _COST]
    likelihood, noise_s, residual_s = _fit(said, faults)
    if _all_whole(said):
        faults["whole seconds"] = "nearest"
    return AnswerDiagnosis(
        sees_clock=True,
        reason="",
        faults=faults,
        undecided=tuple(undecided),
        noise_s=noise_s,
        offset_s=float(np.median(residual_s)),
        answered=len(said),
        asked=len(events),
    )
