"""The requests inside a machine, counted as they change: no step walks over all that wait."""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile

from mmllm.simulation.jobs import Job, Line


class Inside:
    """The requests inside a machine."""

    def __init__(self) -> None:
        self.fresh, self.reading, self.writing = Line(), Line(), Line()
        """Those that no step has worked on, those whose prompt was begun, and those that write."""
        self.left = 0
        """Tokens of prompts that are left to read."""
        self.held = 0
        """Positions of the memory."""
        self._kept: set[str] = set()
        """Videos whose cache is kept."""
        self._asking: defaultdict[str, list[Job]] = defaultdict(list)
        """Video that is not kept -> those that have come to ask about it."""
        self._needs: list[tuple[int, int, Job]] = []
        """A heap of what fresh jobs need; some entries are out of date."""

    def __len__(self) -> int:
        return len(self.fresh) + len(self.reading) + len(self.writing)

    def come(self, job: Job) -> None:
        """Takes a job in."""
        if job.request.video in self._kept:
            job.shorten()
        else:
            self._asking[job.request.video].append(job)
        self.left += job.to_read
        self.held += job.held
        self._line(job).add(job)
        self._note(job)

    def advance(self, step: Sequence[tuple[Job, int]], at_s: float) -> None:
        """Counts what a step has read or written of its jobs; see `Job.advance`."""
        for job, count in step:
            line, own, left = self._line(job), job.own, job.to_read
            if job.advance(count, at_s):
                self._kept.add(job.request.video)
            self.held += job.own - own
            self.left += job.to_read - left
            self._move(job, line)
        for job, _ in step:
            if job.request.video in self._kept:
                self._shorten(job.request.video)

    def end(self, job: Job) -> None:
        """Lets a job that is done go."""
        self._line(job).remove(job)
        self.held -= job.held

    def swap_out(self, job: Job) -> None:
        """Counts that the cache of a job has left the memory."""
        self.held -= job.held
        job.stored, job.swapped = job.held, True

    def swap_in(self, job: Job) -> None:
        """Counts that the cache of a job is back."""
        job.swapped = False
        self.held += job.held

    def give_up(self, job: Job) -> None:
        """Lets the cache of a job go without a copy; see `Job.give_up`."""
        line, held, left = self._line(job), job.held, job.to_read
        job.give_up()
        self.held += job.held - held
        self.left += job.to_read - left
        self._move(job, line)

    def readers(self) -> Iterator[Job]:
        """Those that have something left to read, in order."""
        return heapq.merge(self.fresh, self.reading, key=lambda job: job.place)

    def everyone(self) -> Iterator[Job]:
        """All, in order."""
        return heapq.merge(self.fresh, self.reading, self.writing, key=lambda job: job.place)

    def begun(self) -> Iterator[Job]:
        """Those that have been worked on, in order."""
        return heapq.merge(self.reading, self.writing, key=lambda job: job.place)

    def least_needed(self) -> float:
        """Positions that a fresh job needs at least; without end if there is none."""
        while self._needs and (self._needs[0][2].begun or self._needs[0][2].needed != self._needs[0][0]):
            heapq.heappop(self._needs)
        return self._needs[0][0] if self._needs else math.inf

    def _shorten(self, video: str) -> None:
        """Those that ask about a video whose cache is kept by now, and have not begun, read less."""
        for job in self._asking.pop(video, ()):
            left = job.to_read
            job.shorten()
            self.left += job.to_read - left
            if not job.begun:
                self._note(job)

    def _note(self, job: Job) -> None:
        heapq.heappush(self._needs, (job.needed, job.number, job))

    def _line(self, job: Job) -> Line:
        """The line in which a job stands."""
        if not job.to_read:
            return self.writing
        return self.reading if job.begun else self.fresh

    def _move(self, job: Job, line: Line) -> None:
        """Puts a job into its line, if it has been in another one."""
        if line is not (now := self._line(job)):
            line.remove(job)
            now.add(job)


def shared_out(
    begun: Iterable[Job], fresh: Iterable[Job], room: float, least: float, most: float = math.inf
) -> tuple[list[Job], list[Job]]:
    """Which jobs have memory for their next step, in order, and which have to leave it.

    Args:
        begun: jobs that may hold memory, in order.
        fresh: jobs that hold none, in order.
        room: positions of the memory.
        least: positions that each fresh job needs at least.
        most: how many may have memory.
    """
    able, leaving = list[Job](), list[Job]()
    fitting = takewhile(lambda _: room >= least and len(able) < most, fresh)
    for job in heapq.merge(begun, fitting, key=lambda job: job.place):
        if job.needed <= room:
            room -= job.needed
            able.append(job)
        elif job.held:
            leaving.append(job)
    return able, leaving
