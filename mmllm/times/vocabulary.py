"""Seconds to time tokens and back.

LITA (arXiv 2403.19046, section 3.2) adds N words `<t0>` to `<tN-1>` to the LLM's vocabulary. Word k means the instant
k / (N-1) of the video's duration: words are relative positions, and the last one is the end of the video.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from mmllm.errors import InputError
from mmllm.fields import require
from mmllm.times.stamps import checked_duration, replace_stamps

_TIME_TOKEN = re.compile(r"<t(0|[1-9][0-9]{0,8})>")


@dataclass
class ClampCount:
    """How many times were written as tokens, and how many of them were outside the video and had to be clamped."""

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
            count: counts this token, and whether it was clamped.

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
        """The token number that the released LITA code computes; such a token may not exist.

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
            template: how seconds are written, for example `{}s` for people.

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
        """`<tS> <tE>`, the answer to when an event happens. Arguments as in `write`; start and end are never swapped.

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
        captions = (
            f"{self.event_target(start, end, duration_s, clamp=clamp, count=count)} {sentence.strip()}"
            for start, end, sentence in events
        )
        return " ".join(captions).strip()

    def _word(self, time_s: float, duration_s: float, clamp: bool, count: ClampCount | None) -> str:
        if clamp:
            return f"<t{self.encode(time_s, duration_s, count)}>"
        return f"<t{self.encode_unclamped(time_s, duration_s)}>"

    def _position(self, time_s: float, duration_s: float) -> float:
        time_s, duration_s = float(time_s), checked_duration(duration_s)
        if math.isnan(time_s):
            raise InputError("a time must be a number of seconds, not NaN")
        return (self.count - 1) * (time_s / duration_s)  # division first, as published: the rounding depends on it


def _two_decimals(seconds: float) -> str:
    text = f"{seconds:.2f}"
    return text.removesuffix("0")
