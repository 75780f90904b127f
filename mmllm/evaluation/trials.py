"""Several trials of the same evaluation with sampled answers: the mean and the spread of their scores.

LITA's paper averages every metric over three trials (arXiv 2403.19046, section 4.1). Greedy answers are the same each
time, so several trials are sampled. The random seed depends on the trial's number and the video. So a trial can be
repeated, and a stopped one can go on.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmllm.fields import require, require_seed

SAMPLED = 0.2
"""Temperature of several trials if none is given."""


@dataclass(frozen=True, kw_only=True)
class Trials:
    """How often every question is asked, and how answers are sampled."""

    count: int = 1
    temperature: float = 0.0
    """0 always takes the token with the highest probability."""
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.count >= 1, self, "count", "at least 1")
        require(self.temperature >= 0, self, "temperature", "zero or more")
        different = self.count == 1 or self.temperature > 0
        require(different, self, "temperature", "above 0 for several trials: greedy answers are the same each time")
        require_seed(self.seed, "Trials.seed")

    @classmethod
    def of(cls, count: int, temperature: float | None, seed: int) -> Trials:
        """The settings of a command's flags. Without a temperature, one trial is greedy and several are sampled."""
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
        """Folder of a trial's answers; trials count from 0. It is `root` itself if there is only one trial."""
        return root if self.count == 1 else root / f"trial-{trial + 1}"

    def seed_of(self, trial: int, name: str) -> int:
        """Random seed for the answers of that name, for example those about one video."""
        return zlib.crc32(f"{self.seed}|{trial}|{name}".encode())


def averaged(trials: Sequence[dict[str, Any]], settings: Trials) -> dict[str, Any]:
    """The mean of each score over trials. For several trials also `trials`: settings, `spread`, each trial's scores.

    `spread` is the standard deviation (n - 1) over trials of each score of all questions.
    """
    if len(trials) == 1:
        return trials[0]
    numbers = [{key: value for key, value in scores.items() if isinstance(value, (int, float))} for scores in trials]
    spread = {
        key: float(np.std([scores[key] for scores in numbers], ddof=1))
        for key in numbers[0]
        if isinstance(numbers[0][key], float) and all(key in scores for scores in numbers)
    }
    shared = {"count": len(trials), "temperature": settings.temperature, "seed": settings.seed}
    return {**_mean(trials), "trials": {**shared, "spread": spread, "each": numbers}}


def _mean(values: Sequence[Any]) -> Any:
    """The mean of numbers, or of the numbers at the same place in mappings and lists. None if a value is missing."""
    first = values[0]
    if any(value is None for value in values) or isinstance(first, str):
        return first if all(value == first for value in values) else None
    if isinstance(first, dict):
        return {key: _mean([value[key] for value in values]) for key in first}
    if isinstance(first, list):
        return [_mean(items) for items in zip(*values, strict=True)]
    return first if all(value == first for value in values) else float(np.mean(values))
