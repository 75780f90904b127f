"""Which known faults explain the times that a model was fed: a search for the fewest, exact to the last digit.

U units of frames that share a time: single frames, or the two of a temporal patch
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np

from mmllm.evaluation.clock_situations import FAULTS, VARIANTS, Situation, Suspicion, faulty_times

MOST_FAULTS = 4
"""So many faults are assumed together at most."""
_ANCHORS = ("mean", "first")


@dataclass(frozen=True, kw_only=True, eq=False)
class Observation:
    """Times that a model was fed, and the frames that they stand before."""

    situation: Situation
    kind: str
    """Where they are: "frame times", "time text", "grid seconds", "position rows" or "time tokens"."""
    units: tuple[tuple[int, ...], ...]
    """Numbers of the frames of each unit, U."""
    fed_s: np.ndarray
    """float64, U. The time that each unit was given."""
    tolerance_s: float
    """Half of the smallest step in which this kind of time can be written."""
    relative: bool = False
    """Whether only differences from the first unit mean anything, as those of position rows."""

    @property
    def truth_s(self) -> np.ndarray:
        """float64, U. The mean of the true times of each unit's frames."""
        return np.array([self.situation.times_s[list(unit)].mean() for unit in self.units])

    @property
    def errors_s(self) -> np.ndarray:
        """float64, U. Fed times less the true ones; of relative ones less the error of the first."""
        errors_s = self.fed_s - self.truth_s
        return errors_s - errors_s[0] if self.relative else errors_s


@dataclass(frozen=True, kw_only=True, eq=False)
class FedDiagnosis:
    """What is wrong with fed times."""

    faults: Suspicion
    """The fewest faults that explain the most observations; empty if all times are right."""
    alternatives: tuple[Suspicion, ...]
    """Other faults that explain as much, and are as many."""
    explained: tuple[Observation, ...]
    unexplained: tuple[Observation, ...]
    """Wrong times that no known faults explain."""
    first_of_group: bool
    """Whether a group of frames has the time of its first frame, not the mean of them."""


def diagnose(observations: Sequence[Observation]) -> FedDiagnosis:
    """The fewest faults that explain as many observations as possible."""
    remembered: dict[tuple[int, frozenset[tuple[str, str]]], str] = {}

    def anchor(number: int, suspicion: Suspicion) -> str:
        """How a unit's time follows from its frames under a suspicion; empty if it does not."""
        observation = observations[number]
        relevant = {name: form for name, form in suspicion.items() if name in observation.situation.possible}
        key = (number, frozenset(relevant.items()))
        if key not in remembered:
            fits = (way for way in _ANCHORS if explains(observation, relevant, way))
            remembered[key] = next(fits, "")
        return remembered[key]

    best: list[Suspicion] = []
    most = -1
    for suspicion in suspicions(MOST_FAULTS, {name for seen in observations for name in seen.situation.possible}):
        if best and len(suspicion) > len(best[0]) and most == len(observations):
            break
        count = sum(bool(anchor(number, suspicion)) for number in range(len(observations)))
        if count > most:
            most, best = count, [suspicion]
        elif count == most and len(suspicion) == len(best[0]):
            best.append(suspicion)
    ways = [anchor(number, best[0]) for number in range(len(observations))]
    return FedDiagnosis(
        faults=best[0],
        alternatives=tuple(other for other in best[1:] if set(other) != set(best[0])),
        explained=tuple(seen for seen, way in zip(observations, ways, strict=True) if way),
        unexplained=tuple(seen for seen, way in zip(observations, ways, strict=True) if not way),
        first_of_group="first" in ways,
    )


def suspicions(most: int, possible: set[str]) -> Iterator[dict[str, str]]:
    """All sets of up to `most` possible faults with their variants, fewest first."""
    names = [name for name in FAULTS if name in possible]
    for count in range(most + 1):
        for chosen in combinations(names, count):
            for forms in product(*(VARIANTS[name] for name in chosen)):
                yield dict(zip(chosen, forms, strict=True))


def explains(observation: Observation, suspicion: Suspicion, anchor: str) -> bool:
    """Whether all fed times are those that follow from a suspicion.

    Args:
        observation: the fed times.
        suspicion: what is assumed to go wrong.
        anchor: "mean" or "first": which time a unit of several frames has.
    """
    flat = np.array([number for unit in observation.units for number in unit], dtype=np.float64)
    times_s = faulty_times(observation.situation, flat, suspicion)
    ends = np.cumsum([len(unit) for unit in observation.units])[:-1]
    units = np.array([part.mean() if anchor == "mean" else part[0] for part in np.split(times_s, ends)])
    fed_s, tolerance_s = observation.fed_s, observation.tolerance_s + 1e-6
    rounding = suspicion.get("whole seconds")
    if observation.relative:
        units, fed_s = units - units[0], fed_s - fed_s[0]
    if rounding is None:
        return bool((np.abs(units - fed_s) <= tolerance_s).all())
    low, high = {"nearest": (-0.5, 0.5), "down": (0.0, 1.0), "up": (-1.0, 0.0)}[rounding]
    rest = units - fed_s
    whole = np.abs(fed_s - fed_s.round()) < 1e-6
    return bool((whole & (rest >= low - tolerance_s) & (rest <= high + tolerance_s)).all())
