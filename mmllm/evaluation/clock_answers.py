"""Which known faults explain when a model says that things happen: a robust fit to answers with noise and blunders.

E events with an answer; each has a beginning and an end
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
_WHOLE_SHARE = 0.95


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
    lateness = Lateness(said)
    scored = {
        frozenset(suspicion.items()): _fit(lateness, suspicion)[0] - _COST * len(suspicion)
        for suspicion in suspicions(MOST_FAULTS, possible)
    }
    best = max(scored, key=lambda faults: scored[faults])
    faults = dict(best)
    others = {name: max(score for key, score in scored.items() if name in dict(key)) for name in possible}
    near = scored[best] - 2 * _COST
    undecided = [name for name in FAULTS if name not in faults and others.get(name, near) > near]
    _, noise_s, late_s = _fit(lateness, faults)
    if _all_whole(said):
        faults["whole seconds"] = "nearest"
    return AnswerDiagnosis(
        sees_clock=True,
        reason="",
        faults=faults,
        undecided=tuple(undecided),
        noise_s=noise_s,
        offset_s=float(np.median(late_s)),
        answered=len(said),
        asked=len(events),
    )


class Lateness:
    """How late answers are under any suspicion.

    Args:
        events: with their answers.
    """

    def __init__(self, events: Sequence[AnsweredEvent]) -> None:
        self.events = events
        self.durations_s = np.array([[event.situation.duration_s] for event in events])
        self._remembered: dict[tuple[int, frozenset[tuple[str, str]]], np.ndarray] = {}

    def under(self, suspicion: Suspicion) -> np.ndarray:
        """float64, E 2: beginnings and ends of answers, less what they should be under a suspicion."""
        return np.stack([self._of(row, event, suspicion) for row, event in enumerate(self.events)])

    def _of(self, row: int, event: AnsweredEvent, suspicion: Suspicion) -> np.ndarray:
        possible = event.situation.possible
        key = (row, frozenset(item for item in suspicion.items() if item[0] in possible))
        if key not in self._remembered:
            assert event.answer is not None
            numbers = event.situation.numbers(np.array([event.truth.start_s, event.truth.end_s]))
            expected_s = faulty_times(event.situation, numbers, suspicion).clip(min=0)
            self._remembered[key] = np.array([event.answer.start_s, event.answer.end_s]) - expected_s
        return self._remembered[key]


def _fit(lateness: Lateness, suspicion: Suspicion) -> tuple[float, float, np.ndarray]:
    """Log-likelihood of answers under a suspicion, noise in seconds, and what each answer is late (float64, E 2).

    Noise is Laplace's, and a share of answers is anywhere. Beginnings and ends may each be late by up to a second.
    """
    late_s = lateness.under(suspicion)
    rest_s, anywhere = np.abs(late_s - np.median(late_s, axis=0).clip(-1, 1)), _BLUNDERS / lateness.durations_s
    noise_s = float(np.median(rest_s)) + _SMALLEST_NOISE_S
    for _ in range(20):  # expectation and maximisation
        near = (1 - _BLUNDERS) * np.exp(-rest_s / noise_s) / (2 * noise_s)
        meant = near / (near + anywhere)
        noise_s = max(float((meant * rest_s).sum() / max(meant.sum(), 1e-9)), _SMALLEST_NOISE_S)
    near = (1 - _BLUNDERS) * np.exp(-rest_s / noise_s) / (2 * noise_s)
    return float(np.log(near + anywhere).sum()), noise_s, late_s


def _follows(events: Sequence[AnsweredEvent]) -> bool:
    """Whether answers rise and fall with the events, more than shuffled ones do in all but one case of a hundred."""
    truth = _ranks([(event.truth.start_s + event.truth.end_s) / 2 for event in events])
    answers = _ranks([(event.answer.start_s + event.answer.end_s) / 2 for event in events if event.answer])
    shuffled = np.random.default_rng(0).permuted(np.tile(answers, (_SHUFFLES, 1)), axis=1)
    return int((shuffled @ truth >= answers @ truth).sum()) + 1 <= _CHANCE * (_SHUFFLES + 1)


def _ranks(values: Sequence[float]) -> np.ndarray:
    """float64: centred ranks; equal values share the mean of theirs."""
    array = np.array(values)
    ranks = (array[:, None] > array).sum(1) + ((array[:, None] == array).sum(1) - 1) / 2
    return ranks - ranks.mean()


def _all_whole(events: Sequence[AnsweredEvent]) -> bool:
    """Whether nearly all answered times are whole seconds, which times with a fraction are by chance only."""
    times_s = [time_s for event in events if event.answer for time_s in (event.answer.start_s, event.answer.end_s)]
    whole = sum(math.isclose(time_s, round(time_s), abs_tol=1e-6) for time_s in times_s)
    return whole >= _WHOLE_SHARE * len(times_s)
