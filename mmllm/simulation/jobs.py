"""A request inside the LLM: what of it was read and written, and what it holds of the memory."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

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
    written_in_prompt: int = 0
    """Tokens of the answer that are read as a part of the prompt, because its cache was given up."""
    stored: int = 0
    """Positions of its cache that were copied outside before; they need not leave again."""

    @property
    def place(self) -> tuple[int, float, int]:
        """Where it stands among those that wait: urgent ones first, then by when they were ready."""
        return -self.request.priority, self.ready_s, self.number

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

    @property
    def to_read(self) -> int:
        """Tokens of the prompt that are left."""
        return self.prompt - self.read

    @property
    def done(self) -> bool:
        """Whether the answer is whole."""
        return self.written >= self.request.answer_tokens

    def shorten(self) -> None:
        """Its video's cache is kept: nothing but the question is left to read, unless a step has begun with it."""
        if not (self.begun or self.prefix):
            self.prefix, self.prompt = self.request.video_tokens, self.request.question_tokens

    def advance(self, count: int, at_s: float) -> bool:
        """Counts what a step has read or written; the end of a prompt gives the next token.

        Args:
            count: tokens that were read; where nothing is left to read, one token was written.
            at_s: when the step ended.

        Returns:
            Whether the prompt has come to its end in this step.
        """
        self.begun = True
        reads = self.to_read > 0
        if reads:
            self.read += count
            if self.to_read:
                return False
        self.written += 1
        self.token_times_s.append(at_s)
        return reads

    def give_up(self) -> None:
        """Leaves the memory without a copy: everything is read once more, with the tokens that were written."""
        self.prompt = self.to_read + self.own + (self.written > 0)
        self.read, self.written_in_prompt = 0, self.written


class Line(Collection[Job]):
    """Jobs in the order of their places."""

    def __init__(self) -> None:
        self._jobs: list[Job] = []

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, job: object) -> bool:
        return job in self._jobs

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs)

    def add(self, job: Job) -> None:
        """Puts a job where it belongs."""
        insort(self._jobs, job, key=_place)

    def remove(self, job: Job) -> None:
        """Takes a job out, which must be in it."""
        del self._jobs[bisect_left(self._jobs, job.place, key=_place)]


def _place(job: Job) -> tuple[int, float, int]:
    return job.place
