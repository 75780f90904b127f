"""Which requests the LLM works on in its next step, and with how many tokens of each.

    one            one request at a time, first come first served
    batch          those that wait start together, and the next ones wait for the longest answer
    prefill-first  a prompt is read whole before anybody's next token; answers are written together
    splitfuse      everybody's next token, then pieces of prompts up to a budget (DeepSpeed-FastGen)

`batch` against the others shows what joining at each token gives (Flover).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mmllm.errors import ConfigError
from mmllm.fields import closest, require
from mmllm.simulation.workload import Request


@dataclass(kw_only=True, eq=False)
class Job:
    """A request inside the LLM."""

    request: Request
    number: int
    """Place in the order of arrival."""
    ready_s: float
    """When its video was encoded."""
    prompt: int
    """Tokens to read: the video's, if nobody has asked about it before, and the question's."""
    prefix: int
    """Positions of the video that are in the cache already."""
    read: int = 0
    """Tokens of the prompt that were read."""
    written: int = 0
    """Tokens of the answer."""
    token_times_s: list[float] = field(default_factory=list)
    swapped: bool = False
    """Whether its cache is outside of the LLM's memory."""
    begun: bool = False
    """Whether a step has worked on it: how much of its prompt is in a kept cache is settled."""
    together: bool = False
    """Whether it belongs to the batch that is being answered."""
    written_in_prompt: int = 0
    """Tokens of the answer that are read as a part of the prompt, because its cache was given up."""
    stored: int = 0
    """Positions of its cache that were copied outside before; they need not leave again."""

    @property
    def own(self) -> int:
        """Positions of its cache beside the kept video's."""
        return self.read + max(0, self.written - 1 - self.written_in_prompt)

    @property
    def held(self) -> int:
        """Positions of the LLM's memory that are its own."""
        return 0 if self.swapped else self.own

    @property
    def needed(self) -> int:
        """Positions that it holds at most after its next step."""
        return self.prompt + max(0, self.written - self.written_in_prompt) + 1

    def give_up(self) -> None:
        """Leaves the memory without a copy: everything is read once more, with the tokens that were written."""
        self.prompt = self.to_read + self.own + (self.written > 0)
        self.read, self.written_in_prompt = 0, self.written

    @property
    def to_read(self) -> int:
        """Tokens of the prompt that are left."""
        return self.prompt - self.read

    @property
    def done(self) -> bool:
        """Whether the answer is whole."""
        return self.written >= self.request.answer_tokens


Step = list[tuple[Job, int]]
"""Jobs of a step, with the tokens that it reads or writes of each."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A rule by which steps are put together."""

    name: str = "splitfuse"
    budget: int = 256
    """Most tokens of a step of splitfuse."""
    size: int = 8
    """Most requests of a batch."""

    def __post_init__(self) -> None:
        if self.name not in RULES:
            raise ConfigError(f"policy {self.name!r}: {closest(self.name, RULES)}")
        require(self.budget >= 1, self, "budget", "at least 1")
        require(self.size >= 1, self, "size", "at least 1")

    def step(self, jobs: Sequence[Job]) -> Step:
        """The next step.

        Args:
            jobs: all that can be worked on, in the order in which they are served.
        """
        return RULES[self.name](self, jobs)


def _whole(jobs: Sequence[Job]) -> Step:
    """A whole prompt if one is left, else a token of each answer."""
    for job in jobs:
        if job.to_read:
            return [(job, job.to_read)]
    return [(job, 1) for job in jobs]


def _together(jobs: Sequence[Job], size: int) -> Step:
    """A step of those that started together; once they are all done, of the next ones."""
    batch = [job for job in jobs if job.together]
    if not batch:
        batch = list(jobs[:size])
        for job in batch:
            job.together = True
    return _whole(batch)


def _one(_: Policy, jobs: Sequence[Job]) -> Step:
    return _together(jobs, 1)


def _batch(policy: Policy, jobs: Sequence[Job]) -> Step:
    return _together(jobs, policy.size)


def _prefill_first(_: Policy, jobs: Sequence[Job]) -> Step:
    return _whole(jobs)


def _splitfuse(policy: Policy, jobs: Sequence[Job]) -> Step:
    step: Step = [(job, 1) for job in jobs if not job.to_read]
    left = policy.budget - len(step)
    for job in jobs:
        if job.to_read and left > 0:
            step.append((job, min(job.to_read, left)))
            left -= step[-1][1]
    return step


Rule = Callable[[Policy, Sequence[Job]], Step]
RULES: dict[str, Rule] = {
    "one": _one,
    "batch": _batch,
    "prefill-first": _prefill_first,
    "splitfuse": _splitfuse,
}
