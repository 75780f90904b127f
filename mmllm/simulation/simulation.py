"""Requests on their way through decoding, encoding and the LLM, step by step; no model runs.

    requests -> processes that decode -> the encoder -> the LLM: steps of its policy -> tokens with their times

A video that was decoded and encoded is kept, and so is the LLM's cache of it once somebody's prompt has been read: both
without a limit. The LLM's memory for everything else can have one: then requests of lower priority, later ones first,
leave it, by copying their cache out (`swap`) or by reading their tokens once more (`recompute`).
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from mmllm.errors import ConfigError, InputError
from mmllm.fields import require
from mmllm.simulation.costs import Costs
from mmllm.simulation.jobs import Job
from mmllm.simulation.machine import Leaving, Machine, StepRecord
from mmllm.simulation.policies import Policy
from mmllm.simulation.workload import Request


@dataclass(frozen=True, kw_only=True)
class ServingConfig:
    """The machines that serve."""

    policy: Policy = field(default_factory=Policy)
    decoders: int = 1
    """Processes that decode videos at the same time."""
    memory: int | None = None
    """Positions that the LLM's memory holds beside kept videos; None for no limit."""
    leaving: Leaving = "swap"
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
        machine = Machine(costs, config.policy, config.memory, config.leaving)
        machine.run(jobs)
        return Outcome(
            jobs=jobs,
            steps=[machine.steps],
            most_held=machine.most_held,
            repeated=machine.repeated,
            departures=machine.departures,
        )
    readers, arriving = _read_apart(jobs, costs, config)
    writers = [Machine(costs, config.policy) for _ in range(config.writers)]
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
    """Reads every prompt on the reader that is free first, urgent ones before others that wait.

    Gives the readers' steps, and the jobs for the writers. The cache of a video is there for those whose reading begins
    after it was read: another reader that is asked before reads it, too.
    """
    steps: list[list[StepRecord]] = [[] for _ in range(config.readers)]
    free = [(0.0, number) for number in range(config.readers)]
    upcoming, waiting = deque(jobs), list[tuple[tuple[int, float, int], Job]]()
    kept_s: dict[str, float] = {}
    clock = 0.0
    while upcoming or waiting:
        freed, number = heapq.heappop(free)
        clock = max(clock, freed, 0.0 if waiting else upcoming[0].ready_s)
        while upcoming and upcoming[0].ready_s <= clock:
            job = upcoming.popleft()
            heapq.heappush(waiting, (job.place, job))
        job = heapq.heappop(waiting)[1]
        if kept_s.get(job.request.video, math.inf) <= clock:
            job.shorten()
        end = clock + costs.step(job.prompt, job.prefix)
        kept_s[job.request.video] = min(end, kept_s.get(job.request.video, math.inf))
        steps[number].append(
            StepRecord(begin_s=clock, end_s=end, tokens=job.prompt, writing=0, wrote=0, waiting=job.prompt)
        )
        job.read, job.written = job.prompt, 1
        job.token_times_s.append(end)
        job.ready_s = end + costs.link(job.prefix + job.prompt)
        heapq.heappush(free, (end, number))
    going_on = [job for job in jobs if not job.done]
    return steps, sorted(going_on, key=lambda job: (job.ready_s, job.number))
