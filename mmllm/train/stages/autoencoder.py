"""Trains an image tokenizer: first the latents that it reads and writes, then the tokenizer itself.

B images, S side in pixels
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from mmllm.errors import ConfigError
from mmllm.interfaces import Autoencoder
from mmllm.registry import register
from mmllm.runtime import processes
from mmllm.train.callbacks import LossParts
from mmllm.train.fitting import fit, trained_model
from mmllm.train.image_losses.repa import RepaConfig, check_repa
from mmllm.train.image_losses.training_loss import (
    FrozenNetworks,
    PictureTraining,
    TrainingLoss,
    check_losses,
    frozen_networks,
)
from mmllm.train.optimizers import beside_discriminator
from mmllm.train.pictures import batched
from mmllm.train.stage import TrainingRun, TrainingStage

log = logging.getLogger(__name__)

_MEASURED = 256
"""Pictures from which the spread of the latents is measured."""


@dataclass(frozen=True, kw_only=True)
class LatentsTraining(PictureTraining):
    """Settings of the training of the latents' autoencoder."""

    max_steps: int = 2000
    batch_size: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    adam_beta2: float = 0.99


@dataclass(frozen=True, kw_only=True)
class AutoencoderTraining(PictureTraining):
    """Settings of the training of an image tokenizer."""

    max_steps: int = 2000
    batch_size: int = 32
    learning_rate: float = 1e-3
    adam_beta2: float = 0.99
    repa: RepaConfig | None = None
    """Alignment of FlexTok's decoder with a frozen vision encoder; None trains without it."""


class PicturesStage(TrainingStage):
    """A stage that trains one part of an image tokenizer on pictures."""

    what: ClassVar[str]
    """The work in a few words, for progress and messages."""
    frozen: FrozenNetworks | None = None
    """The networks that the losses compare with, from `check` to the end of `train`."""

    def check(self, model: Any) -> None:
        """Checks that the model is an image tokenizer."""
        if not isinstance(model, Autoencoder):
            raise ConfigError(
                f"the stage {self.registered_name!r} trains an image tokenizer, not {type(model).__name__}: "
                "use it in a recipe of `mmllm train-tokenizer`"
            )

    def train(self, run: TrainingRun, folder: Path) -> Any:
        """Trains the part; see `TrainingStage`."""
        schedule = self.config
        count = schedule.max_steps * schedule.batch_size * schedule.gradient_accumulation_steps * processes.count()
        loss = self.loss(run, run.model)
        trainer = fit(
            loss,
            run.numbered_pictures(count),
            batched,
            schedule,
            folder,
            what=self.what,
            seed=run.seed,
            report_to=run.report_to,
            workers=run.workers,
            optimizer=None if loss.adversarial is None else beside_discriminator(loss, loss.adversarial, schedule),
            callbacks=(LossParts(loss.means),),
        )
        whole = trained_model(trainer, lambda: self.loss(run, run.build()))
        if whole is not None:
            self.part(run.model).load_state_dict(whole.part.state_dict())
            self.finish(run)
        self.frozen = None
        return run.model

    def loss(self, run: TrainingRun, model: Any) -> TrainingLoss:
        """The part with its losses; new weights beside it are drawn from the run's seed."""
        self.load_frozen(model)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run.seed)
            return TrainingLoss(self.part(model), self.config, image_size=model.image_size, frozen=self.frozen)

    def load_frozen(self, model: Any) -> None:
        """Loads the networks that the losses compare with, once; it disturbs no random number."""
        if self.frozen is None:
            with torch.random.fork_rng(devices=[]):
                self.frozen = frozen_networks(self.config, model.image_size)

    def finish(self, run: TrainingRun) -> None:
        """What is done once after the training."""


@register("training", "latents", config=LatentsTraining)
class LatentsStage(PicturesStage):
    """Trains the autoencoder between pixels and latents, and measures the latents' scale."""

    folder: ClassVar[str] = "latents"
    weights: ClassVar[str] = "latents.safetensors"
    what: ClassVar[str] = "train the latents"
    goes_first: ClassVar[bool] = True

    def __init__(self, config: LatentsTraining) -> None:
        self.config = config

    def check(self, model: Any) -> None:
        """Checks that the tokenizer has latents with weights."""
        super().check(model)
        latents = getattr(model, "latents", None)
        if latents is None or next(latents.parameters(), None) is None:
            raise ConfigError(f"{type(model).__name__} has no latents to train here: remove the stage 'latents'")
        self.load_frozen(model)

    def part(self, model: Any) -> nn.Module:
        """Returns the autoencoder of the latents."""
        return model.latents

    def finish(self, run: TrainingRun) -> None:
        """Measures the scale of the latents."""
        measure_scale(run)


def measure_scale(run: TrainingRun) -> None:
    """Sets the scale of the latents, so that those of the first pictures have a standard deviation of 1."""
    pictures = run.numbered_pictures(_MEASURED)
    device = run.model.latents.encoder.scale.device
    images = torch.stack([pictures[number]["images"] for number in range(_MEASURED)])
    run.model.latents.measure_scale(images.to(device))
    log.info("the latents are multiplied by %.3f", float(run.model.latents.encoder.scale))


@register("training", "autoencoder", config=AutoencoderTraining)
class AutoencoderStage(PicturesStage):
    """Trains the image tokenizer; its latents are frozen."""

    folder: ClassVar[str] = "autoencoder"
    weights: ClassVar[str] = "autoencoder.safetensors"
    what: ClassVar[str] = "train the image tokenizer"

    def __init__(self, config: AutoencoderTraining) -> None:
        self.config = config

    def check(self, model: Any) -> None:
        """Checks that the tokenizer can be trained with these losses."""
        super().check(model)
        check_losses(self.config, model)
        if self.config.repa is not None:
            check_repa(self.config.repa, model)
        self.load_frozen(model)

    def part(self, model: Any) -> nn.Module:
        """Returns the whole tokenizer."""
        return model

    def train(self, run: TrainingRun, folder: Path) -> Any:
        """Trains what is not frozen; see `TrainingStage`."""
        latents = getattr(run.model, "latents", None)
        if latents is not None:
            if next(latents.parameters(), None) is None:  # those with weights were measured after their training
                measure_scale(run)
            latents.requires_grad_(False)
        return super().train(run, folder)
