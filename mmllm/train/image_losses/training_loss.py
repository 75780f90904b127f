"""The loss of an image tokenizer in training: its own losses, and those of pictures and features that are added.

B images, S side in pixels
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmllm.errors import ConfigError
from mmllm.fields import require
from mmllm.train.image_losses.adversarial import Adversarial, AdversarialConfig
from mmllm.train.image_losses.perceptual import PerceptualConfig, PerceptualDistance
from mmllm.train.image_losses.repa import Repa, RepaConfig, Teacher
from mmllm.train.schedule import TrainingSchedule


@dataclass(frozen=True, kw_only=True)
class PictureTraining(TrainingSchedule):
    """Settings of a training whose reconstructions can be compared with their pictures."""

    pixel_weight: float = 1.0
    """Weight of the squared error of pixels."""
    perceptual: PerceptualConfig | None = None
    """Distance in the features of a frozen network; None trains without it."""
    adversarial: AdversarialConfig | None = None
    """A discriminator that is trained beside; None trains without it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.pixel_weight >= 0, self, "pixel_weight", "zero or more")


def check_losses(training: PictureTraining, model: Any) -> None:
    """Refuses losses of reconstructions for a tokenizer that makes none in training.

    Raises:
        ConfigError: naming them.
    """
    if model.reconstructs_in_training:
        return
    given = [name for name in ("perceptual", "adversarial") if getattr(training, name) is not None]
    given += ["pixel_weight"] if training.pixel_weight != 1 else []
    if given:
        raise ConfigError(
            f"{', '.join(given)}: {type(model).__name__} makes no reconstruction in training; set this for its "
            "latents, if these are trained"
        )


class FrozenNetworks(NamedTuple):
    """The networks that losses compare with. They are loaded once, before anything is trained."""

    perceptual: PerceptualDistance | None
    teacher: Teacher | None
    """Of REPA."""


def frozen_networks(training: PictureTraining, image_size: int) -> FrozenNetworks:
    """Loads the networks of a training on pictures of this side.

    Raises:
        CheckpointError: if weights cannot be found or do not fit.
        ConfigError: if a network cannot be used for its loss.
    """
    repa: RepaConfig | None = getattr(training, "repa", None)
    perceptual = None if training.perceptual is None else PerceptualDistance(training.perceptual, image_size)
    return FrozenNetworks(perceptual, None if repa is None else Teacher(repa))


class TrainingLoss(nn.Module):
    """A part of an image tokenizer in the form that the Trainer takes: its forward is the sum of all losses.

    Args:
        part: has a `training_pass`, as an `Autoencoder` has.
        training: the losses that are added.
        image_size: S.
        frozen: the networks that they need; None to load them.
    """

    def __init__(
        self, part: Any, training: PictureTraining, *, image_size: int, frozen: FrozenNetworks | None = None
    ) -> None:
        super().__init__()
        self.part = part
        self.pixel_weight = training.pixel_weight
        self.perceptual, teacher = frozen or frozen_networks(training, image_size)
        self.adversarial = None if training.adversarial is None else Adversarial(training.adversarial, image_size)
        self.repa = None if teacher is None else Repa(teacher, part)
        self.sums: dict[str, Tensor] = {}
        """Sum of each loss since the last call of `means`."""
        self.passes = 0

    def forward(self, images: Tensor, captions: list[str]) -> dict[str, Tensor]:
        """The loss of a batch of images, B 3 S S, and their captions, which not every part reads."""
        losses = self.losses(images, captions)
        for name, loss in losses.items():
            self.sums[name] = self.sums.get(name, 0) + loss.detach()
        self.passes += 1
        return {"loss": torch.stack(list(losses.values())).sum()}

    def losses(self, images: Tensor, captions: list[str]) -> dict[str, Tensor]:
        """All losses by name, scalars with their weights."""
        read: contextlib.AbstractContextManager[list[Tensor]]
        text = {"captions": captions} if getattr(self.part, "reads_text", False) else {}
        read = contextlib.nullcontext([]) if self.repa is None else self.repa.reading(self.part)
        with read as hidden:
            own, made = self.part.training_pass(images, **text)
        losses: dict[str, Tensor] = {}
        if made is not None:
            losses["pixels"] = self.pixel_weight * nn.functional.mse_loss(made, images)
        losses |= own
        if self.repa is not None:
            losses["repa"] = self.repa(hidden[0], images)
        if made is not None and self.perceptual is not None:
            losses["perceptual"] = self.perceptual.config.weight * self.perceptual(made, images)
        if made is not None and self.adversarial is not None:
            losses |= self.adversarial(made, images)
        return losses

    def means(self) -> dict[str, Tensor]:
        """Mean of each loss over the passes since the last call."""
        means = {name: total / self.passes for name, total in self.sums.items()}
        self.sums, self.passes = {}, 0
        return means
