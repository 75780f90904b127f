"""Seconds inside text: a stamp such as `<12.34>`.

Annotations contain stamps. A model reads and writes times in its own time format.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from decimal import Decimal

from mmllm.errors import InputError

STAMP = re.compile(r"<([0-9]*\.[0-9]+|[0-9]+\.?)>")
_SECONDS = re.compile(r"(?<![\w.<])(\d+(?:\.\d+)?) ?(?:s|sec|secs|seconds?)\b", re.IGNORECASE)


def replace_stamps(text: str, write: Callable[[float], str]) -> str:
    """`text` with each stamp replaced by what `write` makes of its seconds."""
    return STAMP.sub(lambda match: write(float(match[1])), text)


def stamp(time_s: float) -> str:
    """Seconds as annotations write them, such as `<12.4>`; it is read back as the same float.

    Raises:
        InputError: if the time is negative or not finite, which a stamp cannot express.
    """
    if not (math.isfinite(time_s) and time_s >= 0):
        raise InputError(f"a stamp needs finite seconds, zero or more, not {time_s}")
    return f"<{Decimal(repr(float(abs(time_s)))):f}>"


def stamped(text: str) -> str:
    """The text with "12.4 s" or "12.4 seconds" replaced by the stamp `<12.4>`."""
    return _SECONDS.sub(r"<\1>", text)


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
        raise InputError(f"a duration must be a positive number of seconds, not {duration_s!r:.80}")
    return seconds


def shortened(text: str, length: int = 80) -> str:
    """`text` cut to a length that fits into a message."""
    return text if len(text) <= length else text[: length - 1] + "…"
