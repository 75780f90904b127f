"""The text of an answer, and the spans in seconds that it names."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mmllm.errors import InputError
from mmllm.times.stamps import STAMP, checked_duration, shortened
from mmllm.times.vocabulary import TimeTokens

_BETWEEN_START_AND_END = {"", "to", "and", "until", "till", "through"}
ABSENT = "It does not happen."
"""How an answer says that the event of the question does not happen: the empty set of spans."""
_ABSENT = re.compile(r"\s*it does not happen\s*(?:[.,;:!]\s*|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Span:
    """An interval of a video in seconds, both ends included.

    Raises:
        InputError: if an end is not finite or the span runs backwards.
    """

    start_s: float
    end_s: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.start_s) and math.isfinite(self.end_s) and self.start_s <= self.end_s):
            raise InputError(f"a span needs finite seconds with start <= end, not [{self.start_s}, {self.end_s}]")

    @property
    def length_s(self) -> float:
        """Seconds from start to end."""
        return self.end_s - self.start_s

    def to_json(self) -> list[float]:
        """`[start_s, end_s]`."""
        return [float(self.start_s), float(self.end_s)]


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a model said of a part of a video before it answered; see `mmllm.inference.chain`."""

    span: Span
    """The part."""
    text: str
    """With stamps in seconds of the whole video."""
    spans: tuple[Span, ...]
    """The spans that it names, in seconds of the whole video; empty if it names none."""
    raw: str
    """As the model wrote it, with times of the part."""

    def to_json(self) -> dict[str, Any]:
        """A mapping of plain JSON values."""
        spans = [span.to_json() for span in self.spans]
        return {"part": self.span.to_json(), "text": self.text, "spans": spans, "raw": self.raw}


@dataclass(frozen=True)
class Answer:
    """The answer of a model or an annotator: its sentence and its spans."""

    text: str
    """The sentence, without the two stamps of the first span."""
    spans: tuple[Span, ...]
    """First the span that the published protocol scores, then further ones; see `parse_answer`. Empty without
    a video, and if the answer is that the event does not happen (see `absent`)."""
    raw: str
    """The whole answer, unchanged."""
    fallback: bool
    """True if the answer has fewer than two times. Its span is the whole video."""
    steps: tuple[Step, ...] = ()
    """What the model said before of the parts of the video, if it was asked in a chain."""
    decoding: Mapping[str, Any] | None = field(default=None, compare=False)
    """How it was written, if a decoding method was asked for: its `name`, the `other_law` that it writes (empty if it
    is exact) and its `counts`."""
    context: Mapping[str, Any] | None = field(default=None, compare=False)
    """What the LLM's cache held, if there were policies for it: the `policies`, and their counters as
    `ContextCounts.to_json` gives them, for one question on average."""

    @property
    def absent(self) -> bool:
        """Whether a model's answer is the empty set: it says that the event does not happen."""
        return not (self.spans or self.fallback)

    @property
    def counters(self) -> dict[str, Any] | None:
        """The numbers of `context`, without policies and frames; None without policies."""
        if self.context is None:
            return None
        return {name: value for name, value in self.context.items() if name not in ("policies", "kept_by_frame")}

    def to_json(self) -> dict[str, Any]:
        """A mapping of plain JSON values; `steps` only if there are any."""
        return {
            "text": self.text,
            "spans": [span.to_json() for span in self.spans],
            "raw": self.raw,
            "fallback": self.fallback,
            **({"steps": [step.to_json() for step in self.steps]} if self.steps else {}),
            **({"decoding": dict(self.decoding)} if self.decoding else {}),
            **({"context": dict(self.context)} if self.context else {}),
        }


def parse_answer(
    raw_text: str, duration_s: float, time_tokens: TimeTokens | None = None, strict: bool = False
) -> Answer:
    """The sentence and the spans of an answer that holds time tokens or stamps of seconds.

    The first two stamps, anywhere in the text, are the first span. Each is clamped to [0, duration], the earlier one is
    the start, and both are removed from the sentence. The published protocol scores this span. The other stamps stay in
    the sentence. Two neighbours of them are a span if there is only punctuation between them, or one of "to", "and",
    "until", "till", "through". A span that was already named is not repeated.

    An answer with fewer than two stamps that begins with `ABSENT` has no spans, and is no fallback.

    Args:
        raw_text: the answer, possibly ending with `</s>`.
        duration_s: length of the video in seconds.
        time_tokens: the vocabulary of time; a token outside it is ordinary text. None if the text has only seconds,
            as annotations do.
        strict: refuse an answer with fewer than two stamps, whatever it says, as is done for annotations.

    Raises:
        InputError: if the duration is not a positive number, or `strict` and there are fewer than two stamps.
    """
    duration_s = checked_duration(duration_s)
    text = raw_text if time_tokens is None else time_tokens.read(raw_text, duration_s)
    text = text.strip().removesuffix("</s>").strip()
    stamps = list(STAMP.finditer(text))
    if len(stamps) < 2:
        if strict:
            raise InputError(f"an answer needs a start and an end such as <1.5> <20>: {shortened(raw_text)!r}")
        if saying := _ABSENT.match(text):
            return Answer(text=text[saying.end() :], spans=(), raw=raw_text, fallback=False)
        return Answer(text=text, spans=(Span(0.0, duration_s),), raw=raw_text, fallback=True)

    def span(start: re.Match[str], end: re.Match[str]) -> Span:
        return Span(*sorted(min(float(stamp[1]), duration_s) for stamp in (start, end)))

    first, second = stamps[:2]
    spans = [span(first, second)]
    position = 2
    while position + 1 < len(stamps):
        start, end = stamps[position : position + 2]
        joined = text[start.end() : end.start()].strip(" \t\r\n,;:-–—").lower() in _BETWEEN_START_AND_END
        if joined and span(start, end) not in spans:
            spans.append(span(start, end))
        position += 2 if joined else 1
    sentence = text[: first.start()] + text[first.end() : second.start()] + text[second.end() :]
    return Answer(text=sentence.strip(), spans=tuple(spans), raw=raw_text, fallback=False)


def absent_text(text: str) -> str:
    """The text of an answer that the event does not happen, so that `parse_answer` reads the empty set from it."""
    return text.strip() if _ABSENT.match(text) else f"{ABSENT} {text.strip()}".strip()
