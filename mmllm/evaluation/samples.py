"""A question with its truth and its answer, for scoring. A file of samples has one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Any

from mmllm.datasets.records import Question
from mmllm.errors import InputError
from mmllm.runtime.files import write_text
from mmllm.times.answers import Answer, Span
from mmllm.times.stamps import checked_duration, shortened


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A question with its truth and a model's answer.

    A sample whose truth has spans, or is that the event does not happen, is scored by time, other samples by their
    text. An answer about time without spans says that the event does not happen, unless it is a fallback.

    Raises:
        InputError: if the truth has spans and is absent, or the duration of a sample about time is not a positive
            number of seconds.
    """

    question_id: str
    vid: str
    family: str
    question: str
    group: str = ""
    """A part of the data set; see `Question.group`."""
    duration_s: float | None
    """The annotated length of the video, which converts time tokens to seconds. None if it is not known: then answers
    are not clipped to it, and nothing is said of answers that do not look."""
    truth_spans: tuple[Span, ...] = ()
    """Empty if the truth is only a text, or absent."""
    absent: bool = False
    """The truth is that what is asked for does not happen: the empty set of spans."""
    truth_text: str = ""
    prediction_raw: str = ""
    prediction_spans: tuple[Span, ...] = ()
    prediction_text: str = ""
    fallback: bool = False
    """The answer has fewer than two times. Then its span is the whole video, or it has none if another tool asked."""
    error: str = ""
    """Why there is no answer, for example a video that cannot be read. Empty if the question was answered."""
    steps: tuple[dict[str, Any], ...] = ()
    """What was said before of the parts of the video, as `Step.to_json` gives it, if it was asked in a chain."""
    context: dict[str, Any] | None = None
    """Counters of the LLM's cache, if there were policies for it; see `ContextCounts.to_json`."""
    of: int | None = None
    """Number of questions of the evaluation that this is one of, so that a part of its file is known as a part."""

    def __post_init__(self) -> None:
        if self.truth_spans and self.absent:
            raise InputError(f"question {self.question_id!r} has true spans, and is said not to happen")
        if self.timed and self.duration_s is not None:
            checked_duration(self.duration_s)

    @classmethod
    def asked(cls, question: Question) -> Sample:
        """A sample of a question without an answer. Its error is `not answered`."""
        truth = question.truth()
        return cls(
            question_id=question.question_id,
            vid=question.vid,
            family=question.family,
            group=question.group,
            question=question.question,
            duration_s=question.duration_s,
            truth_spans=truth.spans,
            absent=question.absent,
            truth_text=truth.text,
            error="not answered",
        )

    def failed(self, error: str) -> Sample:
        """The same question without an answer, and the reason for that."""
        nothing: dict[str, Any] = {"prediction_raw": "", "prediction_spans": (), "prediction_text": "", "steps": ()}
        return replace(self, **nothing, context=None, fallback=False, error=error)

    def answered(self, answer: Answer) -> Sample:
        """The same question with a model's answer."""
        return replace(
            self,
            prediction_raw=answer.raw,
            prediction_spans=answer.spans,
            prediction_text=answer.text,
            fallback=answer.fallback,
            error="",
            steps=tuple(step.to_json() for step in answer.steps),
            context=answer.counters,
        )

    @property
    def timed(self) -> bool:
        """Whether the question is about time."""
        return bool(self.truth_spans) or self.absent

    @property
    def denied(self) -> bool:
        """Whether the answer is the empty set: it says that the event does not happen."""
        return not (self.error or self.fallback or self.prediction_spans)

    @property
    def length_s(self) -> float:
        """The duration of a question about time. For other questions it may be missing, which is an InputError."""
        return checked_duration(self.duration_s)

    def to_json(self) -> dict[str, Any]:
        """A mapping of plain JSON values, one line of a file of samples."""
        return {
            "question_id": self.question_id,
            "vid": self.vid,
            "family": self.family,
            **({"group": self.group} if self.group else {}),
            "question": self.question,
            "duration": self.duration_s,
            "truth": {
                "spans": [span.to_json() for span in self.truth_spans],
                **({"absent": True} if self.absent else {}),
                "text": self.truth_text,
            },
            "prediction": {
                "raw": self.prediction_raw,
                "spans": [span.to_json() for span in self.prediction_spans],
                "text": self.prediction_text,
            },
            "fallback": self.fallback,
            "error": self.error,
            **({"steps": list(self.steps)} if self.steps else {}),
            **({"context": self.context} if self.context else {}),
            **({} if self.of is None else {"of": self.of}),
        }

    @classmethod
    def from_json(cls, row: Any) -> Sample:
        """The inverse of `to_json`.

        Raises:
            InputError: if a key is missing or has the wrong type, or a question with true spans has no duration; it
                names the key.
        """
        truth, prediction = _get(row, "truth", dict), _get(row, "prediction", dict)
        if truth.get("spans"):
            checked_duration(row.get("duration"))
        return cls(
            question_id=_get(row, "question_id", str),
            vid=_get(row, "vid", str),
            family=_get(row, "family", str),
            group=_get(row, "group", str) if "group" in row else "",
            question=_get(row, "question", str),
            duration_s=_get(row, "duration", (int, float, NoneType)),
            truth_spans=_spans(truth),
            absent=_get(truth, "absent", bool) if "absent" in truth else False,
            truth_text=_get(truth, "text", str),
            prediction_raw=_get(prediction, "raw", str),
            prediction_spans=_spans(prediction),
            prediction_text=_get(prediction, "text", str),
            fallback=_get(row, "fallback", bool),
            error=_get(row, "error", str),
            steps=tuple(_get(row, "steps", list)) if "steps" in row else (),
            context=_get(row, "context", dict) if "context" in row else None,
            of=_get(row, "of", int) if "of" in row else None,
        )


def _get(row: Any, key: str, kind: type | tuple[type, ...]) -> Any:
    if not isinstance(row, dict):
        raise InputError(f"expected an object with the key {key!r}, not {shortened(repr(row))}")
    if key not in row:
        raise InputError(f"the key {key!r} is missing")
    if not isinstance(row[key], kind) or (isinstance(row[key], bool) and kind is not bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        allowed = " or ".join("None" if item is NoneType else item.__name__ for item in kinds)
        raise InputError(f"{key!r} has the wrong type: {shortened(repr(row[key]))}; allowed: {allowed}")
    return row[key]


def _spans(row: dict[str, Any]) -> tuple[Span, ...]:
    spans = _get(row, "spans", list)
    try:
        return tuple(Span(float(start_s), float(end_s)) for start_s, end_s in spans)
    except (TypeError, ValueError) as problem:
        raise InputError(f"'spans' must be pairs of seconds, start <= end: {problem}") from None


def write_samples(path: Path, samples: Iterable[Sample]) -> None:
    """Writes samples as JSON lines."""
    write_text(path, "".join(json.dumps(sample.to_json(), ensure_ascii=False) + "\n" for sample in samples))


def read_samples(path: Path) -> list[Sample]:
    """The samples of a file of JSON lines, in its order.

    Raises:
        InputError: if the file cannot be read, or a line is not a sample; it names the file and the line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise InputError(f"{path}: cannot be read: {problem}") from None
    samples = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            samples.append(Sample.from_json(json.loads(line)))
        except (ValueError, RecursionError) as problem:
            raise InputError(f"{path}, line {number}: not a scored question: {problem}") from None
    return samples
