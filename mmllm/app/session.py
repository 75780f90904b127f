"""What one visitor has open: videos, and for each of them what was asked and answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmllm.times.answers import Answer, Span


@dataclass(frozen=True, kw_only=True)
class ChatTurn:
    """A question with its answer, and what it took."""

    question: str
    answer: Answer
    settings: str
    """In words."""
    stage_s: Mapping[str, float]
    """Wall time of each stage that was run for this answer: of `decode`, `encode`, `reduce`, and `prefill`, up to the
    first token."""
    first_token_s: float
    """Seconds from asking to the first token."""
    seconds: float
    """Seconds from asking to the last token."""
    tokens: int
    """Tokens of the answer."""
    tokens_per_s: float | None
    visual_tokens: int
    """Visual tokens that the LLM read."""
    cut: str | None = None
    """Why the answer ends early, if it does: tokens, time or stopped."""
    truth: Span | None = None
    """When it really happens, where that is known."""

    @property
    def spans(self) -> tuple[Span, ...]:
        """The spans that were named; none if the answer gave no time."""
        return () if self.answer.fallback else self.answer.spans

    def to_json(self) -> dict[str, Any]:
        """A mapping of plain JSON values."""
        return {
            "question": self.question,
            "text": self.answer.text,
            "spans": [span.to_json() for span in self.spans],
            "raw": self.answer.raw,
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
    """When things happen, by question, where that is known."""
    turns: tuple[ChatTurn, ...] = ()

    @property
    def suggestions(self) -> list[str]:
        """Questions that can be asked."""
        return list(self.truths)

    def asked(self, turn: ChatTurn, most: int) -> Visit:
        """The visit after one more turn; the oldest ones go where there are more than `most`."""
        return replace(self, turns=(*self.turns, turn)[-most:])


@dataclass(frozen=True, kw_only=True)
class Session:
    """All open videos of a visitor, and which one is shown."""

    visits: Mapping[str, Visit] = field(default_factory=dict)
    shown: str | None = None

    @property
    def visit(self) -> Visit | None:
        """The video that is shown."""
        return None if self.shown is None else self.visits[self.shown]

    def with_visit(self, visit: Visit, most: int) -> Session:
        """The session with this video shown, in place of the one of that name or, if there are `most`, the oldest."""
        visits = {name: one for name, one in self.visits.items() if name != visit.name}
        visits = dict(list(visits.items())[-(most - 1) :] if most > 1 else [])
        return Session(visits={**visits, visit.name: visit}, shown=visit.name)
