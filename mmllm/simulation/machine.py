"""A machine with the LLM: takes requests as they are ready, and works in steps."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from mmllm.simulation.costs import Costs
from mmllm.simulation.inside import Inside, shared_out
from mmllm.simulation.jobs import Job
from mmllm.simulation.policies import Policy

Leaving = Literal["swap", "recompute"]


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """A step of a machine."""

    begin_s: float
    end_s: float
    tokens: int
    """Read and written."""
    writing: int
    """Requests that could write a token in it."""
    wrote: int
    """Requests that did."""
    waiting: int
    """Tokens of prompts that were left when it began."""


class Machine:
    """A machine with the LLM.

    Args:
        costs: of its steps.
        policy: which requests it works on.
        memory: positions that its memory holds beside kept videos; None for no limit.
        leaving: what happens to requests for which there is no memory.
    """

    def __init__(self, costs: Costs, policy: Policy, memory: int | None = None, leaving: Leaving = "swap") -> None:
        self.costs, self.policy, self.memory, self.leaving = costs, policy, memory, leaving
        self.inside = Inside()
        self.steps: list[StepRecord] = []
        self.most_held = self.repeated = self.departures = 0
        self._together: list[Job] = []
        """Those that started together and are not done; empty under a policy that lets others join them."""

    def run(self, jobs: Sequence[Job]) -> None:
        """Works until all are done.

        Args:
            jobs: in the order in which they are ready.
        """
        upcoming, inside = deque(jobs), self.inside
        clock = 0.0
        while upcoming or inside:
            if not inside:
                clock = max(clock, upcoming[0].ready_s)
            while upcoming and upcoming[0].ready_s <= clock:
                inside.come(upcoming.popleft())
            clock = self._step(clock)

    def _step(self, begin_s: float) -> float:
        """Works one step, and gives the time at which it ends."""
        inside, waiting = self.inside, self.inside.left
        reading, writing, moved_s = self._able()
        could = len(writing)
        step = self.policy.step(reading, writing)
        tokens, cached = sum(count for _, count in step), sum(job.prefix + job.own for job, _ in step)
        wrote = sum(not job.to_read for job, _ in step)
        end_s = begin_s + moved_s + self.costs.step(tokens, cached)
        self.steps.append(
            StepRecord(begin_s=begin_s, end_s=end_s, tokens=tokens, writing=could, wrote=wrote, waiting=waiting)
        )
        inside.advance(step, end_s)
        self.most_held = max(self.most_held, inside.held)
        for job, _ in step:
            if job.done:
                inside.end(job)
        return end_s

    def _able(self) -> tuple[Iterable[Job], Collection[Job], float]:
        """Those that can read and those that can write, in order, and the seconds in which others leave or come back.

        Under a policy whose requests start together, only these are looked at: the others have nothing in the memory,
        and what they will need is kept free for nobody.
        """
        inside, room = self.inside, math.inf if self.memory is None else self.memory
        if self.policy.together is not None:
            self._together = [job for job in self._together if not job.done]
            if self._together:
                able, leaving = shared_out(self._together, (), room, math.inf)
            else:
                able, leaving = shared_out((), inside.everyone(), room, inside.least_needed(), self.policy.together)
                self._together = able
        elif self.memory is None:
            return inside.readers(), inside.writing, 0.0
        else:
            able, leaving = shared_out(inside.begun(), inside.fresh, room, inside.least_needed())
        moved_s = self._moved(able, leaving)
        return [job for job in able if job.to_read], [job for job in able if not job.to_read], moved_s

    def _moved(self, able: Sequence[Job], leaving: Sequence[Job]) -> float:
        """The seconds in which some leave the memory, and others come back into it."""
        seconds = 0.0
        for job in leaving:
            seconds += self._leave(job)
        for job in able:
            if job.swapped:
                seconds += self.costs.swap(job.stored)
                self.inside.swap_in(job)
        return seconds

    def _leave(self, job: Job) -> float:
        """Takes a job out of the memory, and gives the seconds that it takes; what was copied before does not move."""
        self.departures += 1
        if self.leaving == "recompute":
            self.repeated += job.held
            self.inside.give_up(job)
            return 0.0
        new = job.held - job.stored
        self.inside.swap_out(job)
        return self.costs.swap(new)
