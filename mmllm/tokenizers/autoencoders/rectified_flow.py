"""Rectified flow: straight lines from pictures to noise, learned as velocities and followed back in Euler steps.

B pictures, K Y X channels, rows and columns
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mmllm.errors import InputError
from mmllm.fields import require

Velocity = Callable[[Tensor, Tensor, bool], Tensor]
"""`(noised B K Y X, time B, conditional)` -> velocity B K Y X, from picture to noise."""


@dataclass(frozen=True, kw_only=True)
class TrainingTimes:
    """How the times of a training batch are drawn. 0 is the picture, 1 is noise."""

    density: Literal["logit_normal", "mode"] = "logit_normal"
    """`logit_normal`: the sigmoid of a normal number. `mode`: Stable Diffusion 3's, heavy in the middle."""
    mode_scale: float = 0.25
    """How heavy the middle is in `mode`; 0 is uniform."""
    stratified: bool = False
    """Draw each picture's time from its own equal share of the density, so that a batch covers all times."""
    shift: float = 1.0
    """Above 1, times are moved towards noise: t becomes shift t / (1 + (shift - 1) t) (arXiv 2403.03206). Where noise
    hides the picture, only the tokens tell what to draw, so that they are learned sooner."""

    def __post_init__(self) -> None:
        require(self.density in ("logit_normal", "mode"), self, "density", "logit_normal or mode")
        # Beyond 2 / (pi - 2) the density is negative somewhere.
        require(-1 <= self.mode_scale <= 2 / (math.pi - 2), self, "mode_scale", "-1 to 1.75")
        require(0 < self.shift < math.inf, self, "shift", "positive")

    def draw(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """float32, one time for each of `count` pictures, from 0 to 1."""
        uniform = torch.rand(count, generator=generator, dtype=torch.float64)
        if self.stratified:
            uniform = (torch.randperm(count, generator=generator) + uniform) / count
        return self.from_uniform(uniform).float()

    def from_uniform(self, uniform: Tensor) -> Tensor:
        """Times whose density is the chosen one, of numbers that are uniform from 0 to 1."""
        if self.density == "logit_normal":
            times = torch.special.ndtri(uniform.clamp(1e-12, 1 - 1e-12)).sigmoid()
        else:
            times = 1 - uniform - self.mode_scale * ((math.pi / 2 * uniform).cos() ** 2 - 1 + uniform)
        return self.shift * times / (1 + (self.shift - 1) * times)


def noised(pictures: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """The points at `time` (B) on the lines from pictures to noise (both B K Y X)."""
    share = time.view(-1, *[1] * (pictures.ndim - 1)).to(pictures.dtype)
    return share * noise + (1 - share) * pictures


def velocity_loss(velocity: Tensor, pictures: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of velocities; the right one is noise minus picture at every time."""
    return torch.nn.functional.mse_loss(velocity.float(), (noise - pictures).float())


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """How far velocities are pushed away from those without a condition."""

    scale: float | Callable[[float], float] = 1.0
    """1 is no guidance; a function of the time gives a scale for each step."""
    projected: bool = False
    """Adaptive projected guidance (arXiv 2410.02416): bounded, with momentum, and only across the velocity."""
    momentum: float = -0.5
    """Of the running sum of pushes, in projected guidance."""
    most: float = 2.5
    """Largest Euclidean norm of a push over K Y X, in projected guidance. It depends on the size of the latents."""

    def __post_init__(self) -> None:
        scale_fits = callable(self.scale) or (math.isfinite(self.scale) and self.scale >= 0)
        require(scale_fits, self, "scale", "a number of at least 0, or a function of the time")
        require(self.most > 0, self, "most", "positive")

    @property
    def active(self) -> bool:
        """Whether the velocity without a condition is needed at all."""
        return callable(self.scale) or self.scale != 1

    def at(self, time: float) -> float:
        """The scale at a time.

        Raises:
            InputError: if a function gives no number of at least 0.
        """
        scale = float(self.scale(time)) if callable(self.scale) else self.scale
        if not (math.isfinite(scale) and scale >= 0):
            raise InputError(f"the scale of guidance must be at least 0, and is {scale} at time {time:.3g}")
        return scale


@torch.no_grad()
def sample(velocity: Velocity, noise: Tensor, *, steps: int, guidance: Guidance | None = None) -> Tensor:
    """The pictures at the ends of the lines that begin at `noise`: B K Y X.

    Args:
        velocity: is called once a step, and once more without a condition where guidance is active.
        noise: B K Y X.
        steps: equal Euler steps from time 1 to 0; the last velocity is taken at 1 / steps.
        guidance: None for none.

    Raises:
        InputError: for fewer than one step.
    """
    if steps < 1:
        raise InputError(f"steps must be at least 1, not {steps}")
    push = _Push(guidance or Guidance())
    picture = noise
    for time in (step / steps for step in range(steps, 0, -1)):
        times = picture.new_full((len(picture),), time, dtype=torch.float32)
        towards_noise = velocity(picture, times, True)
        if push.guidance.active:
            towards_noise = push(towards_noise, velocity(picture, times, False), push.guidance.at(time))
        picture = picture - towards_noise / steps
    return picture


class _Push:
    """Guided velocities of one sampling; it holds the running sum of projected guidance."""

    def __init__(self, guidance: Guidance) -> None:
        self.guidance = guidance
        self.sum: Tensor | float = 0.0

    def __call__(self, conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
        difference = conditional - unconditional
        if not self.guidance.projected:
            return unconditional + scale * difference
        self.sum = difference + self.guidance.momentum * self.sum
        over = tuple(range(1, conditional.ndim))
        norm = torch.linalg.vector_norm(self.sum, dim=over, keepdim=True)
        bounded = (self.sum * (self.guidance.most / norm).clamp(max=1)).double()
        length = torch.linalg.vector_norm(conditional.double(), dim=over, keepdim=True).clamp(min=1e-12)
        direction = conditional.double() / length
        along = (bounded * direction).sum(dim=over, keepdim=True) * direction
        return conditional + (scale - 1) * (bounded - along).to(conditional.dtype)


def lengths(
    kind: Literal["uniform", "powers", "uniform_powers"], count: int, most: int, generator: torch.Generator | None
) -> Tensor:
    """int64, `count`: how many registers each picture of a batch keeps in training (nested dropout).

    Args:
        kind: `uniform` from 1 to `most`; `powers` of two with equal chances; `uniform_powers`: uniform, then rounded
            up to a power of two.
        count: pictures.
        most: registers.
        generator: of the random numbers.

    Raises:
        InputError: for another kind.
    """
    if kind == "powers":
        powers = torch.tensor(list(_powers(most)))
        return powers[torch.randint(len(powers), (count,), generator=generator)]
    drawn = torch.randint(1, most + 1, (count,), generator=generator)
    if kind == "uniform":
        return drawn
    if kind == "uniform_powers":
        return (2 ** drawn.double().log2().ceil().long()).clamp(max=most)
    raise InputError(f"lengths are drawn by uniform, powers or uniform_powers, not {kind!r}")


def _powers(most: int) -> Iterator[int]:
    power = 1
    while power < most:
        yield power
        power *= 2
    yield most
