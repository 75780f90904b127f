"""The videos that one visitor has open, each with its questions and answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmllm.times.answers import Answer, Span


@dataclass(frozen=True, kw_only=True)
class ChatTurn:
    """A question with its answer, its seconds and its tokens."""

    question: str
    answer: Answer
    settings: str
    """The settings as text."""
    stage_s: Mapping[str, float]
    """Stage -> seconds, for the stages that ran for this answer: `decode`, `encode`, `reduce` and `prefill`, which ends
    with the first token."""
    first_token_s: float
    """Seconds from the question to the first token."""
    seconds: float
    """Seconds from the question to the last token."""
    tokens: int
    """Tokens of the answer."""
    tokens_per_s: float | None
    visual_tokens: int
    """Visual tokens that the LLM read."""
    cut: str | None = None
    """Why the answer ends early: `tokens`, `time` or `stopped`; None if it does not."""
    truth: Span | None = None
    """The true span, if there is one on record."""

    @property
    def spans(self) -> tuple[Span, ...]:
        """The answered spans; none if the answer names no time, or says that it does not happen."""
        return () if self.answer.fallback else self.answer.spans

    @property
    def without_spans(self) -> str:
        """What is said in place of spans if there are none."""
        return "it does not happen" if self.answer.absent else "no time was named"

    def to_json(self) -> dict[str, Any]:
        """A mapping of plain JSON values."""
        return {
            "question": self.question,
            "text": self.answer.text,
            "spans": [span.to_json() for span in self.spans],
            "raw": self.answer.raw,
            **({"steps": [step.to_json() for step in self.answer.steps]} if self.answer.steps else {}),
            "cut": self.cut,
            "truth": None if self.truth is None else self.truth.to_json(),
            "settings": self.settings,
            "seconds": {
                **{name: round(value, 4) for name, value in self.stage_s.items()},
                "first_token": round(self.first_token_s, 4),
                "total": round(self.seconds, 4),
            },
            "tokens": {"answer": self.tokens, "visual": self.visual_tokens},
            "tokens_per_s": None if self.tokens_per_s is None else round(self.tokens_per_s, 1),
        }


@dataclass(frozen=True, kw_only=True)
class Visit:
    """One open video."""

    name: str
    path: Path
    duration_s: float
    truths: Mapping[str, Span] = field(default_factory=dict)
    """Question -> true span, for the questions that have one on record."""
    turns: tuple[ChatTurn, ...] = ()

    @property
    def suggestions(self) -> list[str]:
        """Questions to suggest: those with a true span."""
        return list(self.truths)

    def asked(self, turn: ChatTurn, most: int) -> Visit:
        """The visit after one more turn; only the last `most` turns stay."""
        return replace(self, turns=(*self.turns, turn)[-most:])


@dataclass(frozen=True, kw_only=True)
class Session:
    """All open videos of a visitor, and the name of the selected one."""

    visits: Mapping[str, Visit] = field(default_factory=dict)
    selected: str | None = None
    """Name of the visit that the page shows; None for no video."""

    @property
    def visit(self) -> Visit | None:
        """The selected visit."""
        return None if self.selected is None else self.visits[self.selected]

    def with_visit(self, visit: Visit, most: int) -> Session:
        """The session with this visit added and selected.

        It replaces a visit of the same name; of the other visits, the latest `most - 1` stay.
        """
        others = [(name, other) for name, other in self.visits.items() if name != visit.name]
        visits = dict(others[-(most - 1) :] if most > 1 else [])
        return Session(visits={**visits, visit.name: visit}, selected=visit.name)
