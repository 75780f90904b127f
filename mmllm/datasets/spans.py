"""Whether annotated times fit their video: inside it, a little over its end, or nothing that can be used.

An end that lies a little over the end of the video is clipped. A time that is not in the video, an interval that ends
before it starts or has no length, is a mistake of the annotation: nobody can tell what was meant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from mmllm.errors import InputError
from mmllm.times.answers import Span
from mmllm.times.stamps import STAMP, shortened

TOLERANCE_S, TOLERANCE = 1.0, 0.05
"""A time may lie so many seconds or this fraction of the length outside of its video, whichever is more."""
_FRAMES_A_SECOND = 120
"""No video has more. So a time above this many times the length is no frame number."""


@dataclass(frozen=True, kw_only=True)
class Length:
    """The length of a video, which its times are compared with."""

    seconds: float
    annotated: bool = True
    """False if it was found by opening the video."""

    def __str__(self) -> str:
        return f"{self.seconds:.10g} s{' by its annotation' if self.annotated else ''}"

    @property
    def slack_s(self) -> float:
        """Seconds that a time may lie outside."""
        return max(TOLERANCE_S, TOLERANCE * self.seconds)


def number(value: Any, what: str, allowed: str = "a number of seconds") -> float:
    """The value as a finite number.

    Args:
        value: the value in the file.
        what: names the value in the message.
        allowed: what the message calls an allowed value.

    Raises:
        InputError: if it is not a finite number.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            seconds = float(value)
        except OverflowError:
            seconds = math.inf
        if math.isfinite(seconds):
            return seconds
    raise InputError(f"{what} must be {allowed}, not {shortened(repr(value))}")


def fitted(start_s: Any, end_s: Any, length: Length | None) -> tuple[Span, str]:
    """An interval, clipped if an end lies a little outside of the video, and what was wrong with it.

    Args:
        start_s: the value in the file.
        end_s: the value in the file.
        length: of the video; None if it is unknown.

    Returns:
        The interval and a text, which is empty if nothing was clipped.

    Raises:
        InputError: if an end is no number, the interval has no length, or lies too far outside of the video.
    """
    start_s, end_s = number(start_s, "a start"), number(end_s, "an end")
    interval = f"the interval [{start_s:.10g}, {end_s:.10g}]"
    lasts = "" if length is None else f" (the video lasts {length})"
    if start_s > end_s:
        meant = "a start and a length" if length and start_s + end_s <= length.seconds else "in the wrong order"
        raise InputError(f"{interval} ends before it starts{lasts}: are the two {meant}?")
    if start_s == end_s:
        raise InputError(f"{interval} has no length{lasts}: give it a start and an end")
    limit_s, slack_s = (math.inf, TOLERANCE_S) if length is None else (length.seconds, length.slack_s)
    if start_s >= limit_s or end_s <= 0 or end_s > limit_s + slack_s or start_s < -slack_s:
        raise InputError(f"{interval} is outside of the video{_lasting(length)}{_guess(start_s, end_s, length)}")
    clipped = Span(max(start_s, 0.0), min(end_s, limit_s))
    changed = (clipped.start_s, clipped.end_s) != (start_s, end_s)
    return clipped, f"{interval} is not inside the video{_lasting(length)}; it was clipped" if changed else ""


def fitted_stamps(text: str, length: Length, *, interval: bool) -> str:
    """What is wrong with the stamps `<12.4>` of a text, if a time lies a little over the end of the video.

    Args:
        text: a question or an answer.
        length: of the video.
        interval: whether the first two stamps are a start and an end.

    Raises:
        InputError: if a time lies too far outside of the video, or the first two are no interval.
    """
    times_s = [float(match[1]) for match in STAMP.finditer(text)]
    reason = ""
    if interval and len(times_s) > 1:
        _, reason = fitted(times_s[0], times_s[1], length)
    for time_s in times_s:
        if time_s > length.seconds + length.slack_s:
            raise InputError(f"the time <{time_s:.10g}> is outside of the video{_lasting(length)}"
                             f"{_guess(time_s, time_s, length)}")  # fmt: skip
        if time_s > length.seconds:
            reason = reason or f"the time <{time_s:.10g}> is not inside the video{_lasting(length)}; it was clipped"
    return reason


def _lasting(length: Length | None) -> str:
    return "" if length is None else f", which lasts {length}"


def _guess(start_s: float, end_s: float, length: Length | None) -> str:
    """What the times may be instead of seconds."""
    if length is None or end_s <= 0:
        return ""
    whole = start_s == int(start_s) and end_s == int(end_s)
    guesses = []
    if whole and end_s <= _FRAMES_A_SECOND * length.seconds:
        guesses.append("frame numbers")
    if whole and end_s / 1000 <= length.seconds + length.slack_s:
        guesses.append("milliseconds")
    if not guesses:
        return ": is it another video, or a part that was cut out of a longer one?"
    return f": are these {' or '.join(guesses)}?"
