"""Time spans in what a video LLM writes, whatever its own way of writing times is.

    text -> without its thoughts -> inside its answer tags -> the first of four rules that gives pairs -> spans

The rules: JSON, pairs of clocks, pairs of numbers with seconds, a start and an end in sentences. Nothing else is read:
a number in the event's words is no time. If no rule gives a pair, and the answer does not say that the event does not
happen, it has no time: `fallback`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from mmllm.errors import InputError
from mmllm.hosting.absence import says_absent, without_sayings
from mmllm.hosting.json_times import json_pairs, json_values, says_nothing
from mmllm.hosting.released_readers import lmms_eval_pairs, timelens_pairs
from mmllm.hosting.written_times import (
    CLOCK,
    NUMBER,
    SECONDS,
    Convert,
    Pair,
    clock_pairs,
    range_pairs,
    replaced,
    sentence_pairs,
)
from mmllm.times.answers import Answer, Span
from mmllm.times.stamps import checked_duration

Unit = Literal["s", "clock", "percent", "permille"]
"""What a number without a unit means: seconds, no time at all, or shares of the video's length of 100 or of 1000."""
Reader = Literal["mmllm", "lmms-eval", "timelens"]
"""Ours, or the behaviour of a released evaluation."""
_SHARES = {"percent": 100.0, "permille": 1000.0}
_RULES = {"clock": clock_pairs, "range": range_pairs, "sentences": sentence_pairs}


@dataclass(frozen=True, kw_only=True)
class ReadTimes:
    """What was read from an answer."""

    spans: tuple[Span, ...]
    """In the order of the text, in seconds. Empty if the answer has no time, or says that the event does not happen."""
    fallback: bool
    """True if the answer has no time, and does not say that the event does not happen."""
    text: str
    """The answer without its thoughts and tags."""
    rule: str = ""
    """What gave the spans: json, clock, range, sentences, absent, or the name of another reader; empty for none."""
    swapped: int = 0
    """Spans that the answer gives end first."""
    clipped: int = 0
    """Spans that begin before 0 or end behind the video."""

    def answer(self, raw: str, duration_s: float) -> Answer:
        """The answer with these spans; the whole video if it has no time.

        Args:
            raw: what the model wrote.
            duration_s: length of the video.
        """
        spans = (Span(0.0, checked_duration(duration_s)),) if self.fallback else self.spans
        return Answer(text=self.text, spans=spans, raw=raw, fallback=self.fallback)


def read_spans(text: str, duration_s: float | None, unit: Unit = "s", reader: Reader = "mmllm") -> ReadTimes:
    """The spans that a model's answer names.

    Args:
        text: the whole answer, with its thoughts if there are any.
        duration_s: length of the video, to which spans are clipped. None if it is unknown: then nothing is clipped.
        unit: what numbers without a unit mean. Numbers with seconds, and clocks, always mean what they say.
        reader: `lmms-eval` or `timelens` for parity with their scores; they know no units and clip nothing.

    Raises:
        InputError: if the text is none, the duration is not positive, shares are to be read without a duration, or
            there is no such unit or reader.
    """
    if not isinstance(text, str):
        raise InputError(f"an answer must be a text, not {text!r:.80}")
    if unit not in get_args(Unit):
        raise InputError(f"no unit {unit!r:.80}: allowed are {', '.join(get_args(Unit))}")
    if reader not in get_args(Reader):
        raise InputError(f"no reader {reader!r:.80}: allowed are {', '.join(get_args(Reader))}")
    length_s = None if duration_s is None else checked_duration(duration_s)
    if length_s is None and unit in _SHARES:
        raise InputError(f"times in {unit} of a video need its duration")
    if reader != "mmllm":
        return _as_released(text, reader)
    said = spoken(text)
    plain = _plain(said)
    rule, pairs = _read(plain, unit, length_s)
    if pairs:
        spans, swapped, clipped = _spans(pairs, length_s)
        return ReadTimes(spans=spans, fallback=False, text=said, rule=rule, swapped=swapped, clipped=clipped)
    return ReadTimes(spans=(), fallback=rule != "absent", text=said, rule=rule)


def spoken(text: str) -> str:
    """An answer without its thoughts, and of answer tags what is inside the last ones.

    Thoughts that were cut before their end are all there is: then nothing is left.
    """
    said = re.sub(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|$)", "", text, flags=re.DOTALL | re.IGNORECASE)
    said = re.split(r"</think(?:ing)?>", said, flags=re.IGNORECASE)[-1]  # the prompt had the opening tag
    answers = re.findall(r"<answer>(.*?)(?:</answer>|$)", said, flags=re.DOTALL | re.IGNORECASE)
    return (answers[-1] if answers else said).strip()


def _plain(said: str) -> str:
    """The text without marks of emphasis, and without angle brackets around times."""
    unmarked = re.sub(r"\*+|`+(?:json)?|\bjson\s*(?=[\[{])", "", said)
    return re.sub(rf"<\s*((?:{CLOCK}|{NUMBER})\s*(?:{SECONDS})?)\s*>", r"\1", unmarked)


def rewritten(text: str, write: Callable[[float], str], unit: Unit, duration_s: float) -> str:
    """A model's text with each of its times written anew; a number that need not be a time stays.

    Args:
        text: with times in the model's way of writing.
        write: seconds -> text.
        unit: what numbers without a unit mean.
        duration_s: length of the video.
    """
    return replaced(_plain(text), write, _converter(unit, checked_duration(duration_s)))


def _converter(unit: Unit, duration_s: float | None) -> Convert:
    """What turns a number without a unit into seconds."""

    def convert(number: float) -> float | None:
        if unit not in _SHARES:
            return number if unit == "s" else None
        assert duration_s is not None
        return number / _SHARES[unit] * duration_s

    return convert


def _read(text: str, unit: Unit, duration_s: float | None) -> tuple[str, list[Pair]]:
    """The rule that applies, and its pairs."""
    convert = _converter(unit, duration_s)
    values, rest = json_values(text)
    if pairs := [pair for value in values for pair in json_pairs(value, convert)]:
        return "json", pairs
    absent = says_absent(rest) or (bool(values) and not rest.strip(" .") and all(map(says_nothing, values)))
    kept = without_sayings(rest) if absent else rest
    for name, rule in _RULES.items():
        if pairs := rule(kept, convert):
            return name, pairs
    return ("absent" if absent else ""), []


def _spans(pairs: list[Pair], duration_s: float | None) -> tuple[tuple[Span, ...], int, int]:
    """Spans without repetitions, and how many of them were swapped and clipped."""
    spans: list[Span] = []
    swapped = clipped = 0
    for pair in pairs:
        start_s, end_s = (min(max(time_s, 0.0), math.inf if duration_s is None else duration_s) for time_s in pair)
        span = Span(min(start_s, end_s), max(start_s, end_s))
        if span not in spans:
            spans.append(span)
            swapped += pair[0] > pair[1]
            clipped += (start_s, end_s) != pair
    return tuple(spans), swapped, clipped


def _as_released(text: str, reader: Reader) -> ReadTimes:
    """What a released evaluation reads. A pair that runs backwards scores 0 there: here it is the instant of its start,
    which overlaps nothing."""
    pairs = lmms_eval_pairs(text) if reader == "lmms-eval" else timelens_pairs(text)
    spans = tuple(Span(start_s, max(start_s, end_s)) for start_s, end_s in pairs)
    swapped = sum(start_s > end_s for start_s, end_s in pairs)
    return ReadTimes(spans=spans, fallback=not spans, text=text.strip(), rule=reader if spans else "", swapped=swapped)
