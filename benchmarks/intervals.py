"""A number with an interval: quartiles, Student's t over seeds, or a bootstrap over clips, seeds or turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mmllm.evaluation.metrics import student_half

RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A median or mean between its bounds. Formatted with `format`, it gives the middle."""

    middle: float
    low: float
    high: float
    values: tuple[float, ...] = ()
    """The single values behind it, if they are stored."""

    @property
    def half(self) -> float:
        """Half its width."""
        return (self.high - self.low) / 2

    def __format__(self, spec: str) -> str:
        return format(self.middle, spec)


def middle(number: float | Interval) -> float:
    """The number itself, or the middle of its interval."""
    return number.middle if isinstance(number, Interval) else number


def quartiles(values: Sequence[float]) -> Interval:
    """Median between the quartiles; a single value is all three."""
    low, median, high = statistics.quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
    return Interval(median, low, high, tuple(values))


def turn_ratio(of: Sequence[float], to: Sequence[float]) -> Interval:
    """Median and quartiles of the ratios, one ratio for each turn."""
    return quartiles([a / b for a, b in zip(of, to, strict=True)])


def median_ratio(of: Sequence[float], to: Sequence[float]) -> Interval:
    """Ratio of the medians with its 95 % interval, by a bootstrap over the turns."""
    pairs = np.array([of, to])  # 2 x turns

    def resampled(generator: np.random.Generator) -> float:
        medians = np.median(pairs[:, generator.integers(pairs.shape[1], size=pairs.shape[1])], axis=1)
        return float(medians[0] / medians[1])

    return _bootstrap(statistics.median(of) / statistics.median(to), resampled)


def student(values: Sequence[float]) -> Interval | float:
    """Mean with its 95 % interval by Student's t (see `student_half`); of a single value the value."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return mean
    half = student_half(values)
    return Interval(mean, mean - half, mean + half, tuple(values))


def over_seeds_and_clips(scores: Sequence[Sequence[float]]) -> Interval:
    """Mean of a table (seeds x clips) and its 95 % interval, by a bootstrap over both; all seeds saw the same clips."""
    table = np.array(scores)
    seeds, clips = table.shape

    def resampled(generator: np.random.Generator) -> float:
        rows = table[generator.integers(seeds, size=seeds)]
        return float(rows[:, generator.integers(clips, size=clips)].mean())

    return _bootstrap(float(table.mean()), resampled, table.mean(axis=1))


def over_seeds_with_clips(scores: Sequence[Sequence[float]]) -> Interval:
    """Mean over seeds and its 95 % interval, by a bootstrap over seeds and over the clips of each."""
    groups = [np.array(group) for group in scores]

    def resampled(generator: np.random.Generator) -> float:
        drawn_groups = [groups[seed] for seed in generator.integers(len(groups), size=len(groups))]
        return float(np.mean([generator.choice(group, len(group)).mean() for group in drawn_groups]))

    means = [group.mean() for group in groups]
    return _bootstrap(float(np.mean(means)), resampled, means)


def _bootstrap(
    estimate: float, resampled: Callable[[np.random.Generator], float], values: Sequence[float] | np.ndarray = ()
) -> Interval:
    """The 95 % interval of a statistic: `resampled` gives it once for values drawn with replacement."""
    generator = np.random.default_rng(0)
    low, high = np.quantile([resampled(generator) for _ in range(RESAMPLES)], (0.025, 0.975))
    return Interval(estimate, float(low), float(high), tuple(float(value) for value in values))
