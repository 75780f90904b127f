"""Times as models write them in sentences: pairs such as "12.5 - 17.0 seconds", "[00:12, 00:17]", "starts at 3 s".

A pair of bare numbers is a pair of times only where nothing else can be meant: after "from", "in", "between", in
brackets, or alone. So "2 to 3 people" are no seconds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

Pair = tuple[float, float]
"""Start and end as they stand in the text, in the order of the text."""
Convert = Callable[[float], float | None]
"""Turns a number without a unit into seconds; None if such a number is no time."""

CLOCK = r"(?:\d{1,3}:[0-5]?\d:[0-5]\d|\d{1,4}:[0-5]\d)(?:[.,]\d{1,6})?"
NUMBER = r"\d{1,9}(?:\.\d{1,9})?"
SECONDS = r"(?:s|secs?|seconds?)\b"
_UNIT = rf"(?P<unit{{n}}>\s*(?:{SECONDS}|%))?"
_JOINT = r"\s*(?:-|–|—|−|~|to|until|till|through|and)\s*(?:about |around |approximately |at |the )?\s*"
_BEFORE = r"(?<![\w.:,$€£#/])"
_AFTER = r"(?![\w:/]|[.,]\d)"
_BARE_BEFORE = re.compile(
    r"(?:(?:^|[\[(\n:;,=])|\b(?:from|between|in|at|during|is|span|interval|range|times?|timestamps?))\s*"
    r"(?:about |around |approximately |the )?\s*$",
    re.IGNORECASE,
)
_BARE_AFTER = re.compile(
    r"\s*(?:$|[\])}\n;!?]|[.,](?!\d)|\b(?:in|of) (?:the|this) (?:video|clip)|\band\b|\bin the\b)", re.IGNORECASE
)
_COUNTS = re.compile(r"\b(?:frames?|pages?|steps?|numbers?|lines?|rows?|chapters?)\W*(?:from|between|in)?\W*$", re.I)


def _time(n: int) -> str:
    """One time: a clock, or a number with or without a unit."""
    return rf"(?:(?P<clock{n}>{CLOCK})|(?P<number{n}>{NUMBER}){_UNIT.format(n=n)})"


_CLOCKS = re.compile(rf"{_BEFORE}(?P<clock1>{CLOCK})(?:{_JOINT}|\s*,\s*)(?P<clock2>{CLOCK})(?![\w:])", re.IGNORECASE)
_RANGE = re.compile(
    rf"(?<![\w.:,$€£#/])(?P<sign>(?<![\d-])-)?(?P<number1>{NUMBER}){_UNIT.format(n=1)}{_JOINT}"
    rf"(?P<number2>{NUMBER}){_UNIT.format(n=2)}{_AFTER}",
    re.IGNORECASE,
)
_LISTED = re.compile(
    rf"\[\s*(?P<sign>-)?(?P<number1>{NUMBER}){_UNIT.format(n=1)}\s*,\s*(?P<number2>{NUMBER}){_UNIT.format(n=2)}\s*\]",
    re.IGNORECASE,
)
_START = r"(?:start(?:s|ed|ing)?|beg[ai]n(?:s|ning)?|onset)"
_END = r"(?:end(?:s|ed|ing)?|finish(?:es|ed)?|stop(?:s|ped)?|concludes?|concluded|until)"
_NEAR = (
    r"""["'\s]*(?:times?|timestamps?|points?|seconds?)?["'\s]*(?:is|at|was|of|:|=)?["'\s]*(?:at|around|about)?["'\s]*"""
)
_EDGE = re.compile(
    rf"\b(?:(?P<start>{_START})|(?P<end>{_END}))\b"
    rf"(?:(?:[^.!?\n\d]|\.(?!\s)(?!\d)){{0,80}}?{_BEFORE}(?:(?P<clock1>{CLOCK})|(?P<number1>{NUMBER})\s*{SECONDS})"
    rf"|{_NEAR}(?P<number2>{NUMBER})(?=\s*(?:$|[\n;!?)\]}}]|[.,](?!\d)|and\b|%)))",
    re.IGNORECASE,
)


def clock_seconds(text: str) -> float:
    """Seconds of a clock such as `1:02:03.5` or `12:34.56`."""
    seconds = 0.0
    for part in text.replace(",", ".").split(":"):
        seconds = 60 * seconds + float(part)
    return seconds


def seconds_of(text: str, convert: Convert) -> float | None:
    """Seconds of a text that is nothing but one time; None if it is anything else."""
    match = re.fullmatch(rf"\s*(?P<sign>-)?{_time(1)}\s*", text, re.IGNORECASE)
    if match is None:
        return None
    seconds = _seconds(match, 1, convert)
    return -seconds if seconds is not None and match["sign"] else seconds


def _seconds(match: re.Match[str], n: int, convert: Convert, other_unit: str | None = None) -> float | None:
    """Seconds of the n-th time of a match; a number without a unit takes that of its neighbour."""
    groups = match.groupdict()
    if groups.get(f"clock{n}"):
        return clock_seconds(groups[f"clock{n}"])
    number, unit = float(groups[f"number{n}"]), (groups.get(f"unit{n}") or other_unit or "").strip()
    return number if unit and unit != "%" else convert(number)


def _pair(match: re.Match[str], convert: Convert) -> Pair | None:
    first, second = match["unit1"], match["unit2"]
    start, end = _seconds(match, 1, convert, second), _seconds(match, 2, convert, first)
    if start is None or end is None:
        return None
    return (-start if match["sign"] else start), end


def clock_pairs(text: str, _: Convert) -> list[Pair]:
    """Pairs of clocks: `00:12 - 00:17.5`, `1:00:12 to 1:00:17`, `[00:12, 00:17]`."""
    return [(clock_seconds(match["clock1"]), clock_seconds(match["clock2"])) for match in _CLOCKS.finditer(text)]


def range_pairs(text: str, convert: Convert) -> list[Pair]:
    """Pairs of numbers: `12.5 - 17 seconds`, `from 12.5 s to 17 s`, `between 12 and 17 s`, `[12.5, 17]`."""
    matches = [match for match in _RANGE.finditer(text) if _means_times(text, match)]
    listed = list(_LISTED.finditer(text))
    pairs = [_pair(match, convert) for match in sorted([*matches, *listed], key=lambda match: match.start())]
    return [pair for pair in pairs if pair is not None]


def whole_pair(text: str, convert: Convert) -> Pair | None:
    """The pair of a text that is nothing but one pair, such as a key or a value in JSON."""
    bare = text.strip()
    for pattern in (_CLOCKS, _RANGE, _LISTED):
        if (match := pattern.fullmatch(bare)) is not None:
            return clock_pairs(bare, convert)[0] if pattern is _CLOCKS else _pair(match, convert)
    return None


def _means_times(text: str, match: re.Match[str]) -> bool:
    """Whether a pair of numbers can only be times: it has a unit, or stands where a time is expected."""
    if _COUNTS.search(text, max(0, match.start() - 40), match.start()):
        return False
    if match["unit1"] or match["unit2"]:
        return True
    before = text[max(0, match.start() - 40) : match.start()]
    return bool(_BARE_BEFORE.search(before)) and bool(_BARE_AFTER.match(text, match.end()))


def sentence_pairs(text: str, convert: Convert) -> list[Pair]:
    """Each start that is followed by an end: `It starts at 12.5 s. It ends at 17 s.`, `Start time: 3, end time: 8`."""
    return list(_started_and_ended(text, convert))


def _started_and_ended(text: str, convert: Convert) -> Iterator[Pair]:
    start: float | None = None
    for match in _EDGE.finditer(text):
        if match["clock1"]:
            seconds: float | None = clock_seconds(match["clock1"])
        else:
            seconds = float(match["number1"]) if match["number1"] else convert(float(match["number2"]))
        if seconds is None:
            continue
        if match["start"]:
            start = seconds
        elif start is not None:
            yield start, seconds
            start = None


_SINGLE = re.compile(rf"{_BEFORE}(?:(?P<clock1>{CLOCK})(?![\w:])|(?P<number1>{NUMBER})\s*{SECONDS})", re.IGNORECASE)


def replaced(text: str, write: Callable[[float], str], convert: Convert) -> str:
    """The text with each time of a pair, each clock and each number with seconds written anew.

    Args:
        text: what was said.
        write: seconds -> text.
        convert: turns a number without a unit into seconds.
    """
    changes: dict[tuple[int, int], str] = {}
    pairs = [match for match in _RANGE.finditer(text) if _means_times(text, match)]
    for match in [*pairs, *_LISTED.finditer(text)]:
        for n, other in ((1, 2), (2, 1)):
            seconds = _seconds(match, n, convert, match[f"unit{other}"])
            end = match.end(f"unit{n}") if match[f"unit{n}"] else match.end(f"number{n}")
            if seconds is not None:
                changes[match.start(f"number{n}"), end] = write(seconds)
    for match in _SINGLE.finditer(text):
        if not any(start < match.end() and match.start() < end for start, end in changes):
            seconds = clock_seconds(match["clock1"]) if match["clock1"] else float(match["number1"])
            changes[match.span()] = write(seconds)
    pieces, position = [], 0
    for (start, end), new in sorted(changes.items()):
        pieces += [text[position:start], new]
        position = end
    return "".join([*pieces, text[position:]])
