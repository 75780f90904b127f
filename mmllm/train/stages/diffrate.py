"""Learning DiffRate's schedule on the video model: how many tokens each block of the encoder keeps.

The paper (arXiv 2305.17997, section 3) learns the schedule of a classifier whose own weights stay as they are. Here the
task is to answer the run's questions: encoder, projector and LLM are frozen, the loss of the answers and that of the
distance from `diffrate:target=...` reach the rates alone. The schedule is saved with the model.
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
    """How the schedule is learned, at the published learning rate. The encoder is run in every step."""

    learning_rate: float = 0.01
    weight_decay: float = 0.0
    adam_beta2: float = 0.999


@register("training", "diffrate", config=DiffRateTraining)
class DiffRateStage(TrainingStage):
    """Learns DiffRate's schedule for `diffrate:target=...` while all other weights are frozen."""

    folder: ClassVar[str] = "diffrate"
    weights: ClassVar[str] = "rates.safetensors"
    goes_first: ClassVar[bool] = False  # answers of an LLM that has learned nothing say nothing about a schedule

    def __init__(self, config: DiffRateTraining) -> None:
        self.config = config
        self.rows_needed = config.rows

    def check(self, model: Any) -> None:
        """Refuses a model without a schedule to learn."""
        if getattr(model.encoder_stage, "rates", None) is None:
            raise ConfigError(
                "the stage 'diffrate' learns a schedule, so the model needs the reducer diffrate:target=SHARE, and an "
                f"encoder that takes it; its reducers are {model.config.reducers or 'none'}"
            )

    def part(self, model: Any) -> nn.Module:
        """The rates of all blocks."""
        return model.encoder_stage.rates

    def train(self, run: TrainingRun, folder: Path) -> Any:
        """Learns the rates; see `TrainingStage`."""
        rows = run.source.rows(run, self.config, keep_features=False)
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
        """The model with all weights frozen but those that the rates learn."""
        learned = [weight for weight in self.part(model).parameters() if weight.requires_grad]
        model.requires_grad_(False)
        for weight in learned:
            weight.requires_grad_(True)
        return model
