"""Checks the times of a back end: what it feeds to its model, exactly, and what its model answers, robustly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmllm.evaluation.clock_answers import AnswerDiagnosis, AnsweredEvent, diagnose_answers
from mmllm.evaluation.clock_backends import ClockBackend, Look, NotOffered, TimesRefused
from mmllm.evaluation.clock_clips import render
from mmllm.evaluation.clock_faults import FedDiagnosis, Observation, diagnose
from mmllm.evaluation.clock_requests import CASES, ClockRequest
from mmllm.evaluation.clock_situations import FAULTS
from mmllm.runtime.progress import Progress


@dataclass(frozen=True, kw_only=True, eq=False)
class ClockReport:
    """What is right and wrong with the times of a back end."""

    backend: str
    fed: Mapping[str, FedDiagnosis]
    """Kind of fed times -> what is wrong with them; each may have faults of its own. Empty if none can be seen."""
    answers: AnswerDiagnosis | None
    """None if nothing was asked."""
    observations: tuple[Observation, ...]
    events: tuple[AnsweredEvent, ...]
    remarks: dict[str, str] = field(default_factory=dict)
    """Case -> why there is nothing to see in it, or what else is to be known."""

    @property
    def faults(self) -> dict[str, str]:
        """The faults of fed and answered times, with their variants; fed times are exact, so their variants count."""
        faults = {} if self.answers is None else dict(self.answers.faults)
        for diagnosis in self.fed.values():
            faults |= diagnosis.faults
        return faults

    @property
    def unexplained(self) -> tuple[Observation, ...]:
        """Wrong fed times that no known fault explains."""
        return tuple(seen for diagnosis in self.fed.values() for seen in diagnosis.unexplained)

    @property
    def healthy(self) -> bool:
        """Whether nothing was found."""
        return not self.faults and not self.unexplained

    def to_json(self) -> dict[str, Any]:
        """A mapping of plain JSON values."""
        return {
            "backend": self.backend,
            "healthy": self.healthy,
            "faults": [{"name": name, "variant": form, "meaning": FAULTS[name]} for name, form in self.faults.items()],
            "cases": [self._case(name) for name in CASES],
            "fed": {kind: _fed_json(diagnosis) for kind, diagnosis in self.fed.items()},
            "answers": None if self.answers is None else _answers_json(self.answers),
        }

    def _case(self, name: str) -> dict[str, Any]:
        """Errors of one case."""
        fed = [_errors(seen) for seen in self.observations if seen.situation.name == name]
        said = [event for event in self.events if event.situation.name == name]
        late_s = [
            late
            for event in said
            if event.answer is not None
            for late in (event.answer.start_s - event.truth.start_s, event.answer.end_s - event.truth.end_s)
        ]
        return {
            "case": name,
            "meaning": CASES[name],
            "fed": fed,
            "asked": len(said),
            "answered": len(late_s) // 2,
            "median_late_s": float(np.median(late_s)) if late_s else None,
            "median_error_s": float(np.median(np.abs(late_s))) if late_s else None,
            "remark": self.remarks.get(name, ""),
        }


def check_backend(
    backend: ClockBackend, requests: Iterable[ClockRequest], *, count: int, ask: bool = True, progress: bool = True
) -> ClockReport:
    """Looks at all requests, asks about their events, and says which faults explain what comes out.

    Args:
        backend: what is checked.
        requests: what it is to look at.
        count: how many requests there are.
        ask: whether the model is asked; if not, only the times that it is fed are looked at.
        progress: whether progress is shown.
    """
    observations: list[Observation] = []
    events: list[AnsweredEvent] = []
    remarks: dict[str, str] = {}
    with Progress("look", count, "videos", shown=progress) as bar:
        for request in requests:
            for clip in request.clips:
                render(clip)
            try:
                look = backend.look(request)
                answered = _answered(backend, request, look) if ask else []
            except NotOffered as reason:
                remarks[request.case] = f"not offered: {reason}"
            except TimesRefused as reason:
                remarks[request.case] = f"refused, as it should be: {reason}"
            else:
                observations += look.observations
                events += answered
                if look.note:
                    remarks[request.case] = look.note
            bar.advance(note=request.case)
    kinds = dict.fromkeys(seen.kind for seen in observations)
    return ClockReport(
        backend=backend.name,
        fed={kind: diagnose([seen for seen in observations if seen.kind == kind]) for kind in kinds},
        answers=diagnose_answers(events) if events else None,
        observations=tuple(observations),
        events=tuple(events),
        remarks=remarks,
    )


def _answered(backend: ClockBackend, request: ClockRequest, look: Look) -> list[AnsweredEvent]:
    """What the model says of the events of a video."""
    if look.ask is None:
        return []
    questions = list(request.questions(backend.reads_counter))
    answers = look.ask([question for question, _ in questions])
    seen = [seen.situation for seen in look.observations] or [look.situation or request.situation()]
    return [
        AnsweredEvent(situation=seen[0], truth=truth, answer=answer.span, question=question, text=answer.text)
        for (question, truth), answer in zip(questions, answers, strict=True)
    ]


def _errors(seen: Observation) -> dict[str, Any]:
    """How far fed times are from the true ones."""
    worst = int(np.abs(seen.errors_s).argmax())
    return {
        "kind": seen.kind,
        "units": len(seen.units),
        "median_error_s": float(np.median(np.abs(seen.errors_s))),
        "largest_error_s": float(seen.errors_s[worst]),
        "true_s": float(seen.truth_s[worst]),
        "fed_s": float(seen.fed_s[worst]),
        "tolerance_s": seen.tolerance_s,
    }


def _fed_json(fed: FedDiagnosis) -> dict[str, Any]:
    return {
        "faults": dict(fed.faults),
        "alternatives": [dict(other) for other in fed.alternatives],
        "first_of_group": fed.first_of_group,
        "unexplained": [{"case": seen.situation.name, **_errors(seen)} for seen in fed.unexplained],
    }


def _answers_json(answers: AnswerDiagnosis) -> dict[str, Any]:
    return {
        "sees_clock": answers.sees_clock,
        "reason": answers.reason,
        "faults": dict(answers.faults),
        "undecided": list(answers.undecided),
        "noise_s": answers.noise_s,
        "offset_s": answers.offset_s,
        "answered": answers.answered,
        "asked": answers.asked,
    }
