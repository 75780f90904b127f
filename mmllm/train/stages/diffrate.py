"""Learns DiffRate's schedule on the video model: how many tokens each block of the encoder keeps.

The paper (arXiv 2305.17997, section 3) learns the schedule of a frozen classifier. Here the task is to answer the run's
questions. Encoder, projector and LLM are frozen. Only the rates are trained, by the loss of the answers and the loss of
the distance from `diffrate:target=...`. The schedule is saved with the model.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from mmllm.errors import ConfigError
from mmllm.registry import register
from mmllm.train.fitting import fit, trained_model
from mmllm.train.packing import RowCollator
from mmllm.train.schedule import RowTraining
from mmllm.train.stage import TrainingRun, TrainingStage

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DiffRateTraining(RowTraining):
    """Settings of the schedule's training, with the published learning rate. Every step runs the encoder."""

    learning_rate: float = 0.01
    weight_decay: float = 0.0
    adam_beta2: float = 0.999


@register("training", "diffrate", config=DiffRateTraining)
class DiffRateStage(TrainingStage):
    """Learns DiffRate's schedule for `diffrate:target=...`; all other weights are frozen."""

    folder: ClassVar[str] = "diffrate"
    weights: ClassVar[str] = "rates.safetensors"
    goes_first: ClassVar[bool] = False  # the loss of an untrained LLM is no guide for a schedule

    def __init__(self, config: DiffRateTraining) -> None:
        self.config = config
        self.rows_needed = config.rows

    def check(self, model: Any) -> None:
        """Checks that the model has a schedule to learn."""
        if getattr(model.encoder_stage, "rates", None) is None:
            raise ConfigError(
                "the stage 'diffrate' needs a model with the reducer diffrate:target=FRACTION and with an encoder that "
                f"supports it; the model's reducers are {model.config.reducers or 'none'}"
            )

    def part(self, model: Any) -> nn.Module:
        """Returns the rates of all blocks."""
        return model.encoder_stage.rates

    def train(self, run: TrainingRun, folder: Path) -> Any:
        """Learns the rates; see `TrainingStage`."""
        rows = run.rows(self.config, keep_features=False)
        trainer = fit(
            self._prepared(run.model),
            rows.dataset,
            RowCollator(pad_token_id=run.processor.tokenizer.pad_token_id),
            self.config,
            folder,
            what="learn DiffRate's schedule",
            seed=run.seed,
            report_to=run.report_to,
            workers=rows.workers,
        )
        trained = trained_model(trainer, lambda: self._prepared(run.build()))
        if trained is not None:
            log.info("DiffRate's schedule: %s", self.part(trained).schedule())  # type: ignore[operator]
        return trained

    def _prepared(self, model: Any) -> Any:
        """Freezes all weights except those of the rates; returns the model."""
        learned = [weight for weight in self.part(model).parameters() if weight.requires_grad]
        model.requires_grad_(False)
        for weight in learned:
            weight.requires_grad_(True)
        return model
