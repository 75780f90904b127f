"""Requests on their way through decoding, encoding and the LLM, step by step; no model runs.

    requests -> processes that decode -> the encoder -> the LLM: steps of its policy -> tokens with their times

A video that was decoded and encoded is kept, and so is the LLM's cache of it once somebody's prompt has been read: both
without a limit. The LLM's memory for everything else can have one: then requests of lower priority, later ones first,
leave it, by copying their cache out (`swap`) or by reading their tokens once more (`recompute`).
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from mmllm.errors import ConfigError, InputError
from mmllm.fields import require
from mmllm.simulation.costs import Costs
from mmllm.simulation.policies import Job, Policy
from mmllm.simulation.workload import Request


@dataclass(frozen=True, kw_only=True)
class ServingConfig:
    """The machines that serve."""

    policy: Policy = field(default_factory=Policy)
    decoders: int = 1
    """Processes that decode videos at the same time."""
    memory: int | None = None
    """Positions that the LLM's memory holds beside kept videos; None for no limit."""
    leaving: Literal["swap", "recompute"] = "swap"
    """What happens to requests for which there is no memory."""
    readers: int = 0
    """Machines that read prompts and write nothing (Splitwise); 0 if all machines do both."""
    writers: int = 0
    """Machines that write answers; a request goes from its reader to the next of them in turn."""

    def __post_init__(self) -> None:
        require(self.decoders >= 1, self, "decoders", "at least 1")
        require(self.memory is None or self.memory >= 1, self, "memory", "at least 1, or None")
        if (self.readers > 0) != (self.writers > 0) or self.readers < 0 or self.writers < 0:
            raise ConfigError("readers and writers: at least 1 of each, or 0 of both")
        if self.readers and self.memory is not None:
            raise ConfigError("memory has no limit where readers and writers are apart")


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


@dataclass(kw_only=True)
class Outcome:
    """What became of the requests."""

    jobs: list[Job]
    steps: list[list[StepRecord]]
    """Of each machine."""
    most_held: int
    """Most positions of one machine's memory."""
    repeated: int = 0
    """Tokens that were read once more."""
    departures: int = 0
    """How often a request left the memory before it was done."""


def simulate(requests: Sequence[Request], costs: Costs, config: ServingConfig | None = None) -> Outcome:
    """Serves requests.

    Args:
        requests: in order of time.
        costs: of every machine.
        config: the machines.

    Raises:
        InputError: if a request needs more memory than there is.
    """
    config = ServingConfig() if config is None else config
    jobs = _encoded(requests, costs, config.decoders)
    if config.memory is not None:
        for job in jobs:
            needed = job.prompt + job.request.answer_tokens
            if needed > config.memory:
                raise InputError(f"request {job.number} needs {needed} positions, and the memory has {config.memory}")
    if not config.readers:
        machine = Machine(costs, config)
        machine.run(jobs)
        return Outcome(
            jobs=jobs,
            steps=[machine.steps],
            most_held=machine.most_held,
            repeated=machine.repeated,
            departures=machine.departures,
        )
    readers, arriving = _read_apart(jobs, costs, config)
    writers = [Machine(costs, config) for _ in range(config.writers)]
    for number, writer in enumerate(writers):
        writer.run(arriving[number :: config.writers])
    return Outcome(
        jobs=jobs,
        steps=[*readers, *(writer.steps for writer in writers)],
        most_held=max(writer.most_held for writer in writers),
    )


def _encoded(requests: Sequence[Request], costs: Costs, decoders: int) -> list[Job]:
    """Jobs for the LLM, in the order in which their videos are ready."""
    free, encoder_free, ready = [0.0] * decoders, 0.0, {}
    jobs = []
    for number, request in enumerate(requests):
        if request.video not in ready:
            decoded = max(request.at_s, heapq.heappop(free)) + costs.decode_s
            heapq.heappush(free, decoded)
            encoder_free = max(decoded, encoder_free) + costs.encode_s
            ready[request.video] = encoder_free
        prompt = request.video_tokens + request.question_tokens
        ready_s = max(request.at_s, ready[request.video])
        jobs.append(Job(request=request, number=number, ready_s=ready_s, prompt=prompt, prefix=0))
    return sorted(jobs, key=lambda job: (job.ready_s, job.number))


def _read_apart(jobs: Sequence[Job], costs: Costs, config: ServingConfig) -> tuple[list[list[StepRecord]], list[Job]]:
    """Reads every prompt on the reader that is free first. Gives the readers' steps, and the jobs for the writers."""
    steps: list[list[StepRecord]] = [[] for _ in range(config.readers)]
    free = [(0.0, number) for number in range(config.readers)]
    kept: set[str] = set()
    for job in jobs:
        freed, number = heapq.heappop(free)
        _shorten(job, kept)
        begin = max(freed, job.ready_s)
        end = begin + costs.step(job.prompt, job.prefix)
        steps[number].append(
            StepRecord(begin_s=begin, end_s=end, tokens=job.prompt, writing=0, wrote=0, waiting=job.prompt)
        )
        job.read, job.written = job.prompt, 1
        job.token_times_s.append(end)
        job.ready_s = end + costs.link(job.prefix + job.prompt)
        kept.add(job.request.video)
        heapq.heappush(free, (end, number))
    going_on = [job for job in jobs if not job.done]
    return steps, sorted(going_on, key=lambda job: (job.ready_s, job.number))


def _shorten(job: Job, kept: set[str]) -> None:
    """A prompt about a video whose cache is kept has nothing but its question to read."""
    if job.request.video in kept and not (job.begun or job.prefix):
        job.prefix, job.prompt = job.request.video_tokens, job.request.question_tokens


class Machine:
    """A machine with the LLM: takes requests as they are ready, and works in steps."""

    def __init__(self, costs: Costs, config: ServingConfig) -> None:
        self.costs, self.config = costs, config
        self.steps: list[StepRecord] = []
        self.kept: set[str] = set()
        self.most_held = self.repeated = self.departures = 0

    def run(self, jobs: Sequence[Job]) -> None:
        """Works until all are done.

        Args:
            jobs: in the order in which they are ready.
        """
        upcoming, inside = deque(jobs), list[Job]()
        clock = 0.0
        while upcoming or inside:
            if not inside:
                clock = max(clock, upcoming[0].ready_s)
            while upcoming and upcoming[0].ready_s <= clock:
                inside.append(upcoming.popleft())
            order = sorted(inside, key=lambda job: (-job.request.priority, job.ready_s, job.number))
            for job in order:
                _shorten(job, self.kept)
            able, moved_s = self._in_memory(order)
            step = self.config.policy.step(able)
            tokens, cached = sum(count for _, count in step), sum(job.prefix + job.own for job, _ in step)
            end = clock + moved_s + self.costs.step(tokens, cached)
            could = [job for job in able if not job.to_read]
            wrote = [job for job, _ in step if not job.to_read]
            self.steps.append(
                StepRecord(
                    begin_s=clock,
                    end_s=end,
                    tokens=tokens,
                    writing=len(could),
                    wrote=len(wrote),
                    waiting=sum(job.to_read for job in able),
                )
            )
            clock = end
            for job, count in step:
                self._advance(job, count, clock)
            self.most_held = max(self.most_held, sum(job.held for job in inside))
            inside = [job for job in inside if not job.done]

    def _advance(self, job: Job, count: int, clock: float) -> None:
        """Counts what a step has read or written of a job; the end of a prompt gives the next token."""
        job.begun = True
        if job.to_read:
            job.read += count
            if job.to_read:
                return
            self.kept.add(job.request.video)
        job.written += 1
        job.token_times_s.append(clock)

    def _in_memory(self, order: Sequence[Job]) -> tuple[list[Job], float]:
        """The jobs that have memory for their next step, and the seconds in which others leave and some come back."""
        room, able, seconds = self.config.memory, list[Job](), 0.0
        if room is None:
            return list(order), 0.0
        for job in order:
            if job.needed <= room:
                room -= job.needed
                able.append(job)
            elif job.held:
                seconds += self._leave(job)
        for job in able:
            if job.swapped:
                seconds += self.costs.swap(job.stored)
                job.swapped = False
        return able, seconds

    def _leave(self, job: Job) -> float:
        """Takes a job out of the memory, and gives the seconds that it takes; what was copied before does not move."""
        self.departures += 1
        if self.config.leaving == "recompute":
            self.repeated += job.held
            job.give_up()
            return 0.0
        new = job.held - job.stored
        job.stored, job.swapped = job.held, True
        return self.costs.swap(new)
