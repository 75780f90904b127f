"""What `mmllm watch` says: a line of JSON for each event, gap and file that cannot be read, and one at the end."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mmllm.video.live.clock import Gap

_KEPT = 2000
"""Figures are those of so many of the last rounds, so that they take no more memory the longer a stream lasts."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One line."""

    kind: Literal["event", "gap", "skipped", "end"]
    values: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """A mapping of plain JSON values; seconds have three decimals."""
        return {
            "kind": self.kind,
            **{key: round(value, 3) if isinstance(value, float) else value for key, value in self.values.items()},
        }


def gap_record(gap: Gap) -> Record:
    """The line of a gap."""
    values = {"start_s": gap.start_s, "end_s": gap.end_s, "by": "the stream's clock" if gap.measured else "wall clock"}
    return Record(kind="gap", values=values)


@dataclass(kw_only=True)
class Figures:
    """How fast a stream is watched, and how much came of it."""

    frames: int = 0
    rounds: int = 0
    gaps: int = 0
    events: int = 0
    last_s: float = 0.0
    """When the newest frame is shown."""
    seconds: float = 0.0
    """Of work: looking and asking, without waiting for the stream."""
    rounds_s: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT))
    """Wall time from a frame's arrival to the end of the round of questions about it."""

    def record(self, why: str) -> Record:
        """The line at the end."""
        values: dict[str, Any] = {
            "why": why,
            "seconds": self.last_s,
            "frames": self.frames,
            "rounds": self.rounds,
            "events": self.events,
            "gaps": self.gaps,
            "times_real_time": self.last_s / self.seconds if self.seconds else 0.0,
        }
        if self.rounds_s:
            ordered = sorted(self.rounds_s)
            values["round_median_s"] = statistics.median(ordered)
            values["round_95_percent_s"] = ordered[int(0.95 * (len(ordered) - 1))]
            values["round_longest_s"] = ordered[-1]
        return Record(kind="end", values=values)
