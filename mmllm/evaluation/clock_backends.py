"""What `mmllm check-times` needs of whatever looks at videos: the times that it feeds, and those that it answers."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mmllm.errors import InputError
from mmllm.evaluation.clock_faults import Observation
from mmllm.evaluation.clock_requests import ClockRequest
from mmllm.evaluation.clock_situations import Situation
from mmllm.times.answers import Span


class NotOffered(InputError):
    """A back end has no way to take a video as it is given. This is no fault."""


class TimesRefused(InputError):
    """A back end refuses to make up times, as it should."""


@dataclass(frozen=True)
class ClockAnswer:
    """What a model wrote, and the span that was read from it."""

    text: str
    span: Span | None
    """None if it names no time."""


Ask = Callable[[Sequence[str]], list[ClockAnswer]]
"""Questions -> an answer to each."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """A video that a back end has taken."""

    observations: tuple[Observation, ...]
    """The times that the model is fed. Empty if there are none, or nobody can see them."""
    ask: Ask | None
    """Asks the model about it; None without a model."""
    note: str = ""
    """A remark for people."""
    situation: Situation | None = None
    """Which frames are looked at, if that is known though no times are seen."""


class ClockBackend(abc.ABC):
    """Something that looks at videos."""

    name: str
    """In words."""
    reads_counter = True
    """Whether its model may be able to read digits, so that the counter is asked for, too."""

    @abc.abstractmethod
    def look(self, request: ClockRequest) -> Look:
        """Takes a video.

        Raises:
            NotOffered: if it has no way to take it so.
            TimesRefused: if it refuses frames without times.
        """
