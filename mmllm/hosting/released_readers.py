"""How two released evaluations read times, for scores that are to be compared with theirs.

Both pair numbers that are no times at all; `mmllm.hosting.reading` does not. What is written here is their behaviour,
not their code: lmms-eval's `charades_sta` since v0.6, and TimeLens as released.
"""

from __future__ import annotations

import re

from mmllm.hosting.written_times import Pair

_EXAMPLE = "a specific example is : 20.8 - 30.0 seconds"
"""lmms-eval's own prompt, in case a model repeats it."""
_KEYWORDS = ("start", "end", "happen")
"""lmms-eval has longer ones, too, all of which contain one of these."""
_CLOCK = re.compile(r"\b(?:\d{1,2}:\d{2}:\d{2}|\d{1,2}:\d{2})(?:\.\d+)?\b")
_DASHED = re.compile(r"(?<!\d)(\d++(?:\.\d++)?+)\s*+[–-]\s*(\d+(?:\.\d+)?)")
_DASHED_SECONDS = re.compile(r"(?<!\d)(\d++(?:\.\d++)?+)\s*+s?\s*+[–-]\s*(\d+(?:\.\d+)?)")
_NUMBER = re.compile(r"\b(?:\d+\.\d+|\d+)\b")


def lmms_eval_pairs(text: str) -> list[Pair]:
    """At most one pair, earlier time first.

    Every "to" counts as a dash. Only lines that say start, end or happen are read: the first of them with "a - b"; else
    the first numbers of two such lines; else the first of them with "a s - b s". A clock is never read as one: its
    numbers are taken before.
    """
    text = text.lower().replace(_EXAMPLE, "").replace("to", "-")
    lines = [line for line in re.split(r"[!?\n]", text) if any(word in line for word in _KEYWORDS)]
    numbers = [float(match[0]) for line in lines if (match := _NUMBER.search(line))]
    pairs = (
        _first(_DASHED, lines) or list(zip(numbers[::2], numbers[1::2], strict=False)) or _first(_DASHED_SECONDS, lines)
    )
    return [(min(pair), max(pair)) for pair in pairs[:1]]


def _first(pattern: re.Pattern[str], lines: list[str]) -> list[Pair]:
    """The pairs of the first line that has any."""
    pairs = ([(float(start), float(end)) for start, end in pattern.findall(line)] for line in lines)
    return next((of_line for of_line in pairs if of_line), [])


def timelens_pairs(text: str) -> list[Pair]:
    """All pairs, as they stand: clocks two by two, else all "a - b", else all "a to b", else all numbers two by two.

    An odd one at the end is dropped. A pair that runs backwards stays so, and scores 0 in TimeLens.
    """
    text = text.lower()
    times = [_clock(clock) for clock in _CLOCK.findall(text)]
    if len(times) >= 2:
        return list(zip(times[::2], times[1::2], strict=False))
    for joint in (r"\s*+-\s*", r"\s++to\s+"):
        if pairs := re.findall(rf"(?<!\d)(\d++\.?+\d*+){joint}(\d+\.?\d*)", text):
            return [(float(start), float(end)) for start, end in pairs]
    numbers = [float(number) for number in _NUMBER.findall(text)]
    return list(zip(numbers[::2], numbers[1::2], strict=False))


def _clock(text: str) -> float:
    *larger, seconds = text.split(":")
    minutes = 0
    for part in larger:
        minutes = 60 * minutes + int(part)
    return 60.0 * minutes + float(seconds)
