"""Trains an image tokenizer: first the latents that it reads and writes, then the tokenizer itself.

B images, S side in pixels
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmllm.errors import ConfigError
from mmllm.interfaces import Autoencoder
from mmllm.registry import register
from mmllm.runtime import processes
from mmllm.train.fitting import fit, trained_model
from mmllm.train.pictures import batched
from mmllm.train.schedule import TrainingSchedule
from mmllm.train.stage import TrainingRun, TrainingStage

log = logging.getLogger(__name__)

_MEASURED = 256
"""Pictures from which the spread of the latents is measured."""


@dataclass(frozen=True, kw_only=True)
class LatentsTraining(TrainingSchedule):
    """Settings of the training of the latents' autoencoder."""

    max_steps: int = 2000
    batch_size: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    adam_beta2: float = 0.99


@dataclass(frozen=True, kw_only=True)
class AutoencoderTraining(TrainingSchedule):
    """Settings of the training of an image tokenizer."""

    max_steps: int = 2000
    batch_size: int = 32
    learning_rate: float = 1e-3
    adam_beta2: float = 0.99


class LossOf(nn.Module):
    """A part whose forward is a loss, in the form that the Trainer takes."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, images: Tensor, captions: list[str]) -> dict[str, Tensor]:
        """The loss of a batch of images, B 3 S S, and their captions, which not every part reads."""
        text = {"captions": captions} if getattr(self.part, "reads_text", False) else {}
        return {"loss": self.part(images, **text)}


class PicturesStage(TrainingStage):
    """A stage that trains one part of an image tokenizer on pictures."""

    what: ClassVar[str]
    """The work in a few words, for progress and messages."""

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
        trainer = fit(
            LossOf(self.part(run.model)),
            run.numbered_pictures(count),
            batched,
            schedule,
            folder,
            what=self.what,
            seed=run.seed,
            report_to=run.report_to,
            workers=run.workers,
        )
        whole = trained_model(trainer, lambda: LossOf(self.part(run.build())))
        if whole is not None:
            self.part(run.model).load_state_dict(whole.part.state_dict())
            self.finish(run)
        return run.model

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
