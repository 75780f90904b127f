"""Requests about videos over time: made from a seed, or read from a file."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mmllm.errors import InputError
from mmllm.fields import from_mapping, require


@dataclass(frozen=True, kw_only=True)
class Request:
    """A question about a video."""

    at_s: float
    """When it comes."""
    video: str
    """Which video it is about. The LLM's cache of a video is kept: a second question reads itself only."""
    video_tokens: int
    """Positions of the video."""
    question_tokens: int
    answer_tokens: int
    priority: int = 0
    """Greater numbers go first, where the policy looks at them."""
    deadline_s: float | None = None
    """How long it may take altogether; None if nobody minds."""

    def __post_init__(self) -> None:
        require(0 <= self.at_s < math.inf, self, "at_s", "zero or more, and finite")
        require(self.video_tokens >= 0, self, "video_tokens", "zero or more")
        require(self.question_tokens >= 1, self, "question_tokens", "at least 1")
        require(self.answer_tokens >= 1, self, "answer_tokens", "at least 1")
        _require_deadline(self)


@dataclass(frozen=True, kw_only=True)
class WorkloadConfig:
    """Requests that come at random, independently of each other."""

    requests: int = 2000
    per_s: float = 7.0
    """Mean number of requests a second."""
    new: float = 0.5
    """Share of requests about a video that nobody has asked about."""
    video_tokens: int = 356
    question_tokens: int = 20
    answer_tokens: int = 16
    """The mean; answers have from half to one and a half times as many."""
    urgent: float = 0.0
    """Share of requests with priority 1."""
    deadline_s: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.requests >= 1, self, "requests", "at least 1")
        require(0 < self.per_s < math.inf, self, "per_s", "above 0, and finite")
        for name in ("new", "urgent"):
            require(0 <= getattr(self, name) <= 1, self, name, "from 0 to 1")
        require(self.video_tokens >= 0, self, "video_tokens", "zero or more")
        require(self.question_tokens >= 1, self, "question_tokens", "at least 1")
        require(self.answer_tokens >= 1, self, "answer_tokens", "at least 1")
        _require_deadline(self)


def _require_deadline(settings: Request | WorkloadConfig) -> None:
    """Refuses a time in which nothing can be answered, or that is no number."""
    allowed = settings.deadline_s is None or settings.deadline_s > 0
    require(allowed, settings, "deadline_s", "seconds above 0, or None")


def requests_of(config: WorkloadConfig) -> list[Request]:
    """The requests of a workload, in order of time; the same for the same seed."""
    chance = random.Random(config.seed)
    at, videos, requests = 0.0, 0, []
    for _ in range(config.requests):
        at += chance.expovariate(config.per_s)
        if videos == 0 or chance.random() < config.new:
            videos += 1
            video = videos - 1
        else:
            video = chance.randrange(videos)
        least, most = max(1, config.answer_tokens // 2), max(1, config.answer_tokens * 3 // 2)
        requests.append(
            Request(
                at_s=at,
                video=str(video),
                video_tokens=config.video_tokens,
                question_tokens=config.question_tokens,
                answer_tokens=chance.randint(least, most),
                priority=int(chance.random() < config.urgent),
                deadline_s=config.deadline_s,
            )
        )
    return requests


def write_requests(file: Path, requests: Sequence[Request]) -> None:
    """Writes requests as lines of JSON."""
    file.write_text("".join(json.dumps(asdict(request)) + "\n" for request in requests), encoding="utf-8")


def read_requests(file: Path) -> list[Request]:
    """The requests in lines of JSON, in order of time.

    Raises:
        InputError: if the file cannot be read, has no request, or a line is none; it names the line.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as problem:
        raise InputError(f"{file}: cannot be read: {problem.strerror}") from None
    requests = []
    for number, line in enumerate(lines, 1):
        try:
            requests.append(from_mapping(Request, json.loads(line)))
        except (ValueError, TypeError) as problem:
            raise InputError(f"{file}: line {number} is no request: {problem}") from None
    if not requests:
        raise InputError(f"{file}: there is no request in it")
    return sorted(requests, key=lambda request: request.at_s)
