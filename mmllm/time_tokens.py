"""Seconds to time tokens and back, and an answer's text to the spans it names.

LITA (arXiv 2403.19046, section 3.2) adds N words `<t0>` to `<tN-1>` to the LLM's vocabulary. Word k means the instant
k / (N-1) of the video's duration, so that words name relative positions and the last one is the very end. Seconds
are written in text as `<12.34>`, called a stamp here: annotations hold stamps, the LLM reads and writes time tokens.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any

from mmllm.errors import InputError
from mmllm.fields import require

_STAMP = re.compile(r"<([0-9]*\.[0-9]+|[0-9]+\.?)>")
_TIME_TOKEN = re.compile(r"<t(0|[1-9][0-9]{0,8})>")
_BETWEEN_START_AND_END = {"", "to", "and", "until", "till", "through"}


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
            raise InputError(f"a span needs finite seconds, start <= end, not [{self.start_s}, {self.end_s}]")

    @property
    def length_s(self) -> float:
        """Seconds from start to end."""
        return self.end_s - self.start_s

    def to_json(self) -> list[float]:
        """`[start_s, end_s]`."""
        return [float(self.start_s), float(self.end_s)]


@dataclass(frozen=True)
class Answer:
    """What a model or an annotator said, and when."""

    text: str
    """The sentence, without the two stamps that gave the first span."""
    spans: tuple[Span, ...]
    """The interval the published protocol scores, then any further ones; see `parse_answer`."""
    raw: str
    """The answer as it was given."""
    fallback: bool
    """True if the answer named fewer than two times, so that the span is the whole video."""

    def to_json(self) -> dict[str, Any]:
        """A mapping of plain JSON values."""
        return {
            "text": self.text,
            "spans": [span.to_json() for span in self.spans],
            "raw": self.raw,
            "fallback": self.fallback,
        }


@dataclass
class ClampCount:
    """How many times were written as tokens, and how many of them lay so far outside the video that they moved."""

    encoded: int = 0
    clamped: int = 0


@dataclass(frozen=True, kw_only=True)
class TimeTokens:
    """The vocabulary of time: how many words, and what each one means."""

    count: int = 100
    """Number of time tokens; an instant is off by at most duration / (2 (count - 1))."""

    def __post_init__(self) -> None:
        require(2 <= self.count <= 100_000, self, "count", "from 2 to 100000")

    @cached_property
    def strings(self) -> tuple[str, ...]:
        """The words, in order of time."""
        return tuple(f"<t{k}>" for k in range(self.count))

    def encode(self, time_s: float, duration_s: float, count: ClampCount | None = None) -> int:
        """The token nearest to an instant, from 0 to `count` - 1; times outside the video get the nearest end.

        Args:
            time_s: seconds; an infinite time is outside the video.
            duration_s: length of the video in seconds.
            count: if given, is told of this token and of whether it had to be clamped.

        Raises:
            InputError: if the duration is not a positive number or the time is NaN.
        """
        position = self._position(time_s, duration_s)
        last = self.count - 1
        token = round(min(max(position, -1.0), last + 1.0))
        if count is not None:
            count.encoded += 1
            count.clamped += not 0 <= token <= last
        return min(max(token, 0), last)

    def encode_unclamped(self, time_s: float, duration_s: float) -> int:
        """The number the released LITA code computes, which may name a token that does not exist.

        Raises:
            InputError: if the duration is not a positive number or the time is not finite.
        """
        position = self._position(time_s, duration_s)
        if not math.isfinite(position):
            raise InputError(f"a time must be a finite number of seconds, not {time_s}")
        return round(position)

    def decode(self, token: int, duration_s: float) -> float:
        """Seconds that a token means, within [0, duration].

        Raises:
            InputError: if the duration is not a positive number.
        """
        duration_s = checked_duration(duration_s)
        return min(max(token * duration_s / (self.count - 1), 0.0), duration_s)

    def write(self, text: str, duration_s: float, *, clamp: bool = True, count: ClampCount | None = None) -> str:
        """`text` with each stamp of seconds replaced by its time token; everything else is kept.

        Args:
            text: for example `<12.4> <30> He chops onions.`
            duration_s: length of the video in seconds.
            clamp: False writes what the released LITA code writes, such as `<t119>` for 60 s of 50 s.
            count: see `encode`; unclamped tokens are not counted.

        Raises:
            InputError: if the duration is not a positive number.
        """
        checked_duration(duration_s)

        return replace_stamps(text, lambda time_s: self._word(time_s, duration_s, clamp, count))

    def read(self, text: str, duration_s: float, template: str = "<{}>") -> str:
        """`text` with each time token of this vocabulary replaced by seconds, rounded to 2 decimals.

        Args:
            text: for example `<t20> <t49> He chops onions.`
            duration_s: length of the video in seconds.
            template: how seconds are shown; `{}s` reads well to people.

        Raises:
            InputError: if the duration is not a positive number.
        """
        checked_duration(duration_s)

        def seconds(match: re.Match[str]) -> str:
            token = int(match[1])
            if token >= self.count:
                return match[0]
            return template.format(_two_decimals(self.decode(token, duration_s)))

        return _TIME_TOKEN.sub(seconds, text)

    def event_target(
        self,
        start_s: float,
        end_s: float,
        duration_s: float,
        *,
        clamp: bool = True,
        count: ClampCount | None = None,
    ) -> str:
        """`<tS> <tE>`, the answer to when an event happens. Arguments as in `write`; no ends are swapped.

        Raises:
            InputError: if the duration is not a positive number or a time is NaN.
        """
        return " ".join(self._word(time_s, duration_s, clamp, count) for time_s in (start_s, end_s))

    def dense_caption_target(
        self,
        timestamps: Sequence[Sequence[float]],
        sentences: Sequence[str],
        duration_s: float,
        *,
        sort: bool = False,
        clamp: bool = True,
        count: ClampCount | None = None,
    ) -> str:
        """`<tS> <tE> sentence` of every event, joined by single spaces.

        Args:
            timestamps: start and end of each event in seconds.
            sentences: what happens; white space at both ends is dropped.
            duration_s: length of the video in seconds.
            sort: order events by start, then end, as the paper says; the released code keeps the file's order.
            clamp: as in `write`.
            count: as in `write`.

        Raises:
            InputError: if there are not as many sentences as timestamps, a timestamp is not a pair, the duration
                is not a positive number, or a time is NaN.
        """
        checked_duration(duration_s)
        if len(timestamps) != len(sentences):
            raise InputError(f"{len(timestamps)} timestamps but {len(sentences)} sentences")
        if any(len(pair) != 2 for pair in timestamps):
            raise InputError("every timestamp must be a pair of seconds, start and end")
        events = [(pair[0], pair[1], sentence) for pair, sentence in zip(timestamps, sentences, strict=True)]
        if sort:
            events.sort(key=lambda event: event[:2])
        told = (
            f"{self.event_target(start, end, duration_s, clamp=clamp, count=count)} {sentence.strip()}"
            for start, end, sentence in events
        )
        return " ".join(told).strip()

    def _word(self, time_s: float, duration_s: float, clamp: bool, count: ClampCount | None) -> str:
        if clamp:
            return f"<t{self.encode(time_s, duration_s, count)}>"
        return f"<t{self.encode_unclamped(time_s, duration_s)}>"

    def _position(self, time_s: float, duration_s: float) -> float:
        time_s, duration_s = float(time_s), checked_duration(duration_s)
        if math.isnan(time_s):
            raise InputError("a time must be a number of seconds, not NaN")
        return (self.count - 1) * (time_s / duration_s)  # division first, as published: the rounding depends on it


def parse_answer(
    raw_text: str, duration_s: float, time_tokens: TimeTokens | None = None, strict: bool = False
) -> Answer:
    """The sentence and the spans of an answer that holds time tokens or stamps of seconds.

    The first two stamps, wherever they are, give the first span: each is clamped to [0, duration], the earlier is the
    start, and both are cut out of the sentence. This is what the published protocol scores. Further spans are read
    from the remaining stamps, which stay in the sentence: two neighbours with nothing between them but punctuation
    or one of "to", "and", "until", "till", "through" are a start and an end; a span already named is not repeated.

    Args:
        raw_text: the answer, possibly ending with `</s>`.
        duration_s: length of the video in seconds.
        time_tokens: the vocabulary of time; a token outside it is ordinary text. None if the text holds seconds
            only, as annotations do.
        strict: refuse an answer with fewer than two stamps, as annotations are read.

    Raises:
        InputError: if the duration is not a positive number, or `strict` and there are fewer than two stamps.
    """
    duration_s = checked_duration(duration_s)
    text = raw_text if time_tokens is None else time_tokens.read(raw_text, duration_s)
    text = text.strip().removesuffix("</s>").strip()
    stamps = list(_STAMP.finditer(text))
    if len(stamps) < 2:
        if strict:
            raise InputError(f"an answer needs a start and an end such as <1.5> <20>: {shortened(raw_text)!r}")
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


def replace_stamps(text: str, write: Callable[[float], str]) -> str:
    """`text` with each stamp replaced by what `write` makes of its seconds."""
    return _STAMP.sub(lambda match: write(float(match[1])), text)


def stamp(time_s: float) -> str:
    """Seconds as annotations write them, such as `<12.4>`; reads back as the same float.

    Raises:
        InputError: if the time is negative or not finite, which a stamp cannot express.
    """
    if not (math.isfinite(time_s) and time_s >= 0):
        raise InputError(f"a stamp needs a time from 0, not {time_s}")
    return f"<{Decimal(repr(float(abs(time_s)))):f}>"


def checked_duration(duration_s: float | None) -> float:
    """`duration_s` as a float.

    Raises:
        InputError: if it is not a positive, finite number of seconds.
    """
    try:
        seconds = math.nan if duration_s is None else float(duration_s)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise InputError(f"a duration must be a positive number of seconds, not {duration_s!r}")
    return seconds


def shortened(text: str, length: int = 80) -> str:
    """`text` cut to a length that fits into a message."""
    return text if len(text) <= length else text[: length - 1] + "…"


def _two_decimals(seconds: float) -> str:
    text = f"{seconds:.2f}"
    return text.removesuffix("0")
