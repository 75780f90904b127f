"""What `mmllm check-times` asks a back end to look at: clips given in all the ways in which times go wrong.

n frames of a clip, T frames of a list
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmllm.evaluation.clock_clips import DURATION_S, ClockClip, clock_clip
from mmllm.evaluation.clock_situations import Situation
from mmllm.times.answers import Span

CASES = {
    "plain": "a whole file with ten frames a second from 0 on",
    "late start": "a file whose picture begins 3.2 s after its sound",
    "variable rate": "a file with 10, then 2.5, then 5 frames a second",
    "cut range": "a part of a file",
    "resampled": "a file, with a rate at which it is to be sampled",
    "frame list": "frames in memory, unevenly spaced, with the time of each",
    "frame list without times": "frames in memory without times, which nobody can know",
    "second video": "a file, looked at after another one in the same call",
}
"""Name of a case -> how its video is given."""
Frames = Sequence[int] | np.ndarray | None
_LISTED = 20
_RATE = 2.0


@dataclass(frozen=True, kw_only=True, eq=False)
class ClockRequest:
    """A clip and the way in which it is given."""

    case: str
    clip: ClockClip
    start_s: float | None = None
    end_s: float | None = None
    sampled_fps: float | None = None
    listed: np.ndarray | None = None
    """int64, T. Numbers of the frames that are given in memory; None for the file itself."""
    with_times: bool = True
    first: ClockRequest | None = None
    """What is given before it in the same call."""

    def situation(self, chosen: Frames = None, first_chosen: Frames = None) -> Situation:
        """What the times depend on.

        Args:
            chosen: numbers of the frames that the back end looks at; None if nobody knows.
            first_chosen: the same of the video before it.
        """
        if chosen is None:
            chosen = self._offered if self.listed is None else self.listed
        return Situation(
            name=self.case,
            times_s=self.clip.times_s,
            duration_s=self.clip.duration_s,
            average_fps=self.clip.average_fps,
            chosen=np.unique(np.asarray(chosen, dtype=np.int64)),
            sampled_fps=self.sampled_fps,
            start_s=self.start_s,
            in_memory=self.listed is not None,
            without_times=not self.with_times,
            first=None if self.first is None else self.first.situation(first_chosen),
        )

    @property
    def clips(self) -> tuple[ClockClip, ...]:
        """The clips that it needs."""
        return (self.clip, *(() if self.first is None else self.first.clips))

    @property
    def _offered(self) -> np.ndarray:
        """int64: all frames in the part that is looked at; with a rate, those nearest to it."""
        begin, end = self.start_s or 0.0, self.clip.duration_s if self.end_s is None else self.end_s
        inside = np.flatnonzero((self.clip.times_s >= begin - 1e-9) & (self.clip.times_s <= end + 1e-9))
        if self.sampled_fps is None:
            return inside
        wanted_s = np.arange(begin, end, 1 / self.sampled_fps)
        return np.abs(self.clip.times_s[inside][None] - wanted_s[:, None]).argmin(1) + inside[0]

    def questions(self, counter: bool) -> Iterator[tuple[str, Span]]:
        """Questions with their only answers.

        Args:
            counter: whether to ask for the counter, too, which a model must be able to read.
        """
        for event in self.clip.events:
            yield f"When is the {event.name} on screen?", event.span
        if counter:
            middle = int(np.mean([event.span.start_s + event.span.end_s for event in self.clip.events]) / 2)
            number = self.clip.counter + middle
            yield f"When does the counter in the picture show the number {number}?", Span(middle, middle + 1)


def requests(folder: Path, clips: int) -> Iterator[ClockRequest]:
    """All cases, each with so many clips. Their files are not written yet.

    Args:
        folder: where the files are to be.
        clips: of each case.
    """
    for seed in range(clips):
        steady, late, uneven = (clock_clip(folder, kind, seed) for kind in ("steady", "late", "uneven"))
        spread = np.linspace(0, len(uneven.times_s) - 1, _LISTED).round().astype(np.int64)
        event = steady.events[0].span
        start_s = round(0.45 * event.start_s, 1)
        end_s = round(event.end_s + 0.8 * (DURATION_S - event.end_s), 1)
        begins_late = ClockRequest(case="late start", clip=late)
        yield ClockRequest(case="plain", clip=steady)
        yield begins_late
        yield ClockRequest(case="variable rate", clip=uneven)
        yield ClockRequest(case="cut range", clip=steady, start_s=start_s, end_s=end_s)
        yield ClockRequest(case="resampled", clip=steady, sampled_fps=_RATE)
        yield ClockRequest(case="frame list", clip=uneven, listed=spread)
        yield ClockRequest(case="frame list without times", clip=uneven, listed=spread, with_times=False)
        yield ClockRequest(case="second video", clip=steady, first=begins_late)
