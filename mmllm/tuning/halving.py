"""Successive halving for the cheapest reducer within a target: rungs of more and more clips, fewer and fewer settings.

    a rung   -> a setting whose mIoU is surely under the target stops
             -> of the others those stay that are within the target and cheap, then those nearest to it

A setting is compared with the model that sees every token on the same clips, so that hard clips count for both.

V clips
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from optuna.pruners import BasePruner
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from mmllm.errors import InputError
from mmllm.evaluation.metrics import student_half

OUTSIDE = 10.0
"""Added to the value of a setting under the target: more than any reducer costs, as a share of the unreduced cost."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How a setting stands after some clips."""

    clips: int
    miou: float
    share: float
    """Its mIoU as a share of the unreduced model's on the same clips."""
    low: float
    high: float
    """95 % interval of `share`, by Student's t over clips, inside what is possible."""
    cost: float
    """Its cost as a share of the unreduced model's."""

    def value(self, target: float) -> float:
        """What halving minimises: the cost, or more than every cost by how far it is under the target."""
        return self.cost if self.share >= target else OUTSIDE + target - self.share

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def standing(own: Sequence[float], whole: Sequence[float], cost: float, whole_cost: float) -> Standing:
    """How a setting stands.

    Args:
        own, whole: mIoU of each clip (V), of the setting and of the unreduced model.
        cost, whole_cost: of both, in any unit.

    Raises:
        InputError: if the unreduced model scores 0.
    """
    reference = float(np.mean(whole))
    if reference <= 0:
        raise InputError(f"the unreduced model has mIoU 0 on {len(whole)} clips: no share of it can be asked for")
    share = float(np.mean(own)) / reference
    # the interval of a ratio of means: that of the mean of what each clip adds to it
    apart = [score - share * full for score, full in zip(own, whole, strict=True)]
    half = student_half(apart) / reference if len(apart) > 1 else math.inf
    return Standing(
        clips=len(own),
        miou=float(np.mean(own)),
        share=share,
        low=max(0.0, share - half),
        high=min(1 / reference, share + half),
        cost=cost / whole_cost,
    )


def rungs(first: int, clips: int, factor: int) -> list[int]:
    """Numbers of clips: `first`, then `factor` times as many each time, and at last all."""
    sizes = []
    while first < clips:
        sizes.append(first)
        first *= factor
    return [*sizes, clips]


class TargetPruner(BasePruner):
    """Stops trials that are surely under the target, and of the others all but the best part.

    All trials of a rung report their value before the first is asked about. Of equals the one with the larger share of
    mIoU is better. Among a trial's attributes are `rungs`, clips -> its `Standing`, and its `order` among equals.

    Args:
        target: the share of mIoU that is asked for.
        factor: one of so many trials stays.
    """

    def __init__(self, target: float, factor: int) -> None:
        self.target, self.factor = target, factor

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether a trial stops at the rung that it has reported last."""
        step = trial.last_step
        if step is None:
            return False
        if self.is_under(trial, step):
            return True
        beside = [
            self._rank(other, step)
            for other in study.get_trials(deepcopy=False)
            if step in other.intermediate_values and other.state != TrialState.FAIL and not self.is_under(other, step)
        ]
        return self._rank(trial, step) not in sorted(beside)[: math.ceil(len(beside) / self.factor)]

    def is_under(self, trial: FrozenTrial, step: int) -> bool:
        """Whether its mIoU is surely under the target after so many clips."""
        return bool(trial.user_attrs["rungs"][str(step)]["high"] < self.target)

    @staticmethod
    def _rank(trial: FrozenTrial, step: int) -> tuple[float, float, int]:
        """The lowest is the best."""
        attributes = trial.user_attrs
        return trial.intermediate_values[step], -attributes["rungs"][str(step)]["share"], attributes["order"]
