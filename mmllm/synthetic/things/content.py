"""What can be asked about a clip of things: when each name is on screen, and which intervals can be asked for."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from mmllm.synthetic.things.staging import Staging
from mmllm.synthetic.things.wording import said
from mmllm.synthetic.world import LONGEST_FRACTION, SHORTEST_FRACTION, SHORTEST_S, SceneSpan

_MOST_SHARE = 0.5
"""Several intervals of an answer are together at most this part of the clip."""
GAP_S = 1.0
"""Intervals of an answer are so far apart, at least."""


@dataclass(frozen=True, kw_only=True)
class ThingsQuestion:
    """A question about a clip, with its only answer."""

    question: str
    answer: str
    family: str
    spans: tuple[SceneSpan, ...] | None
    """The intervals of the answer; empty if it does not happen; None for a question that is not about time."""

    def to_json(self, group: str = "") -> dict[str, Any]:
        """A QA of a training file, as `mmllm.datasets.rtl` reads it."""
        return {
            "q": self.question,
            "a": self.answer,
            "family": self.family,
            **({"group": group} if group else {}),
            **({} if self.spans is None else {"spans": [list(span) for span in self.spans]}),
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Content:
    """What can be asked about."""

    staging: Staging
    pool: Sequence[str]
    """Names of which some are not in the clip."""
    random_state: random.Random
    """Chooses the words."""

    @cached_property
    def spans(self) -> dict[str, list[SceneSpan]]:
        """When each name is on screen; names that are never seen have no entry."""
        return self.staging.on_screen

    def answerable(self, spans: Sequence[SceneSpan]) -> bool:
        """Whether intervals are long and short enough to be asked for, and well apart."""
        duration_s = self.staging.world.duration_s
        least_s = max(SHORTEST_S, SHORTEST_FRACTION * duration_s) - 1e-6
        most = LONGEST_FRACTION if len(spans) == 1 else _MOST_SHARE
        gaps = [later.start_s - earlier.end_s for earlier, later in pairwise(spans)]
        return (
            len(spans) > 0
            and min(span.length_s for span in spans) >= least_s
            and sum(span.length_s for span in spans) <= most * duration_s + 1e-6
            and min(gaps, default=GAP_S) >= GAP_S - 1e-6
        )

    @cached_property
    def clear(self) -> list[str]:
        """Names whose intervals can be asked for."""
        return [name for name, spans in self.spans.items() if self.answerable(spans)]

    def say(self, ways: tuple[str, ...], a: str, **words: object) -> str:
        """One of several ways to say something."""
        return said(self.random_state, ways, a, **words)
