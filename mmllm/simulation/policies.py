"""Which requests the LLM works on in its next step, and with how many tokens of each.

    one            one request at a time, first come first served
    batch          those that wait start together, and the next ones wait for the longest answer
    prefill-first  a prompt is read whole before anybody's next token; answers are written together
    splitfuse      everybody's next token, then pieces of prompts up to a budget (DeepSpeed-FastGen)

`batch` against the others shows what joining at each token gives (Flover).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from mmllm.errors import ConfigError
from mmllm.fields import closest, require
from mmllm.simulation.jobs import Job

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

    @property
    def together(self) -> int | None:
        """How many requests start together at most, and end before others start; None if others join at any step."""
        return {"one": 1, "batch": self.size}.get(self.name)

    def step(self, reading: Iterable[Job], writing: Collection[Job]) -> Step:
        """The next step.

        Args:
            reading: those that have something left to read and can be worked on, in the order in which they are served.
            writing: those that can write a token.
        """
        return RULES[self.name](self, reading, writing)


def _whole(_: Policy, reading: Iterable[Job], writing: Collection[Job]) -> Step:
    """A whole prompt if one is left, else a token of each answer."""
    for job in reading:
        return [(job, job.to_read)]
    return [(job, 1) for job in writing]


def _splitfuse(policy: Policy, reading: Iterable[Job], writing: Collection[Job]) -> Step:
    """A token of each answer, and pieces of prompts for what is left of the budget."""
    step: Step = [(job, 1) for job in writing]
    left = policy.budget - len(step)
    for job in reading:
        if left <= 0:
            break
        step.append((job, min(job.to_read, left)))
        left -= step[-1][1]
    return step


Rule = Callable[[Policy, Iterable[Job], Collection[Job]], Step]
RULES: dict[str, Rule] = {"one": _whole, "batch": _whole, "prefill-first": _whole, "splitfuse": _splitfuse}
"""How a step is put together from those that can be worked on; under `one` and `batch` that is who started together."""
