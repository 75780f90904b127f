"""What `mmllm doctor` says of a model: facts, faults, and a fingerprint of what it computes.

T frames, S side in pixels
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mmllm.tokens import VideoClip

if TYPE_CHECKING:
    from torch import Tensor

QUESTION = "When does it happen?"
FRAMES = 4
_PROBES = 6
"""Sums with random signs in a sketch."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """The facts about a model, its fingerprint and its faults."""

    facts: dict[str, Any]
    """The parts and properties of the model, as JSON values."""
    fingerprint: dict[str, list[float]]
    """Stage -> `sketch` of its output. The same weights on another device or in another precision change it by a few
    per cent at most; other weights change it more."""
    wrong: list[str]
    """The faults, one sentence each."""


def diagnosis_of(facts: dict[str, Any], faults: list[str], reference: Callable[[], Mapping[str, Tensor]]) -> Diagnosis:
    """The diagnosis of a model.

    Args:
        facts: as JSON values.
        faults: those that were found without running the model, one sentence each.
        reference: runs it and gives the outputs of its stages.
    """
    wrong = list(faults)
    fingerprint: dict[str, list[float]] = {}
    try:
        fingerprint = {stage: sketch(values) for stage, values in reference().items()}
    except Exception as problem:  # any error is a fault of the model, to be listed
        wrong.append(f"the reference forward fails: {' '.join(str(problem).split()) or type(problem).__name__}")
    for stage, numbers in fingerprint.items():
        if not all(math.isfinite(number) for number in numbers):
            wrong.append(f"the reference forward gives numbers that are not finite ({stage})")
            fingerprint[stage] = [0.0] * len(numbers)
    return Diagnosis(facts=facts, fingerprint=fingerprint, wrong=wrong)


def seeded_clip(side: int) -> VideoClip:
    """A clip of `FRAMES` frames of at least S pixels a side, a second apart; always the same."""
    coarse = np.random.default_rng(0).integers(0, 256, (FRAMES, 8, 8, 3), dtype=np.uint8)
    factor = -(-side // 8)
    frames = coarse.repeat(factor, axis=1).repeat(factor, axis=2)
    return VideoClip(frames=frames, times_s=np.arange(FRAMES, dtype=np.float64), duration_s=float(FRAMES))


def sketch(values: Tensor) -> list[float]:
    """A few numbers that change with the values: their root mean square, then sums of them with seeded random signs.

    Each sum is divided by its standard deviation, root mean square times the root of the count. Relative noise of 1e-3
    changes each number by about 1e-3. `differences` compares two sketches.
    """
    import torch

    flat = values.detach().float().cpu().flatten()
    root_mean_square = flat.pow(2).mean().sqrt()
    signs = torch.randint(0, 2, (_PROBES, len(flat)), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    probes = signs @ flat / (root_mean_square.clamp(min=1e-12) * len(flat) ** 0.5)
    return [float(f"{root_mean_square:.4g}"), *(round(float(probe), 3) for probe in probes)]


def differences(before: dict[str, list[float]], now: dict[str, list[float]], tolerance: float = 0.03) -> list[str]:
    """A sentence for each stage whose sketches differ by more than `tolerance`.

    The tolerance is relative for the root mean square and absolute for the sums.
    """
    if unshared := sorted(set(before) ^ set(now)):
        return [f"the fingerprint has other stages than before: {', '.join(unshared)}"]
    changes = []
    for stage, numbers in now.items():
        old = before[stage]
        same = len(old) == len(numbers) and abs(old[0] - numbers[0]) <= tolerance * max(abs(old[0]), 1e-12)
        if not (same and all(abs(a - b) <= tolerance for a, b in zip(old[1:], numbers[1:], strict=True))):
            changes.append(f"{stage}: the fingerprint is {numbers}, it was {old}")
    return changes
