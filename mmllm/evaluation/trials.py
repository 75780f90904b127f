"""Several rounds of the same evaluation with sampled answers, their mean and their spread.

The paper averages every metric over three trials (arXiv 2403.19046, section 4.1). Greedy answers are the same each
time, so several trials are sampled; each round is seeded by its number and the video, so that it can be repeated, and
continued where it was stopped.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmllm.fields import require

SAMPLED = 0.2
"""Temperature of several trials where none is given."""


@dataclass(frozen=True, kw_only=True)
class Trials:
    """How often everything is asked, and how answers are drawn."""

    count: int = 1
    temperature: float = 0.0
    """0 takes the likeliest token each time."""
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.count >= 1, self, "count", "at least 1")
        require(self.temperature >= 0, self, "temperature", "zero or more")
        different = self.count == 1 or self.temperature > 0
        require(different, self, "temperature", "above 0 for several trials: greedy answers are the same each time")
        require(self.seed >= 0, self, "seed", "zero or more")

    @classmethod
    def of(cls, count: int, temperature: float | None, seed: int) -> Trials:
        """As flags say; without a temperature one trial is greedy, and several are sampled."""
        if temperature is None:
            temperature = SAMPLED if count > 1 else 0.0
        return cls(count=count, temperature=temperature, seed=seed)

    @property
    def generate(self) -> dict[str, Any]:
        """Options of transformers' `generate`."""
        if not self.temperature:
            return {"do_sample": False}
        return {"do_sample": True, "temperature": self.temperature, "top_k": 0, "top_p": 1.0}

    def folder(self, root: Path, trial: int) -> Path:
        """Where the answers of a trial, counted from 0, are kept: `root` itself if it is the only one."""
        return root if self.count == 1 else root / f"trial-{trial + 1}"

    def seed_of(self, trial: int, name: str) -> int:
        """What the answers of that name are drawn from, for example those about one video."""
        return zlib.crc32(f"{self.seed}|{trial}|{name}".encode())


def averaged(trials: Sequence[dict[str, Any]], settings: Trials) -> dict[str, Any]:
    """The mean of each score over trials; with several also `trials`: settings, `spread` and each trial's own scores.

    `spread` is the standard deviation (n - 1) of the scores of all questions over the trials.
    """
    if len(trials) == 1:
        return trials[0]
    own = [{key: value for key, value in scores.items() if isinstance(value, (int, float))} for scores in trials]
    spread = {
        key: float(np.std([scores[key] for scores in own], ddof=1))
        for key in own[0]
        if isinstance(own[0][key], float) and all(key in scores for scores in own)
    }
    told = {"count": len(trials), "temperature": settings.temperature, "seed": settings.seed}
    return {**_mean(trials), "trials": {**told, "spread": spread, "each": own}}


def _mean(values: Sequence[Any]) -> Any:
    first = values[0]
    if any(value is None for value in values) or isinstance(first, str):
        return first if all(value == first for value in values) else None
    if isinstance(first, dict):
        return {key: _mean([value[key] for value in values]) for key in first}
    if isinstance(first, list):
        return [_mean(items) for items in zip(*values, strict=True)]
    return first if all(value == first for value in values) else float(np.mean(values))
