"""Pre-trains an audio encoder on rendered sounds: at each tenth of a second it predicts what is heard.

N stretches, S samples, n instants, K kinds of sound, E width
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmllm.errors import ConfigError
from mmllm.fields import require
from mmllm.interfaces import AudioEncoder
from mmllm.modeling.hearing import pooled
from mmllm.registry import register
from mmllm.runtime import processes
from mmllm.synthetic.clips import SyntheticConfig
from mmllm.synthetic.sounds import INSTANTS_PER_S, sound_batch
from mmllm.synthetic.world import SOUNDS
from mmllm.train.fitting import fit, trained_model
from mmllm.train.schedule import TrainingSchedule
from mmllm.train.stage import TrainingRun, TrainingStage


@dataclass(frozen=True, kw_only=True)
class AudioEncoderTraining(TrainingSchedule):
    """Settings of the pre-training; each step uses `batch_size` new stretches of sound."""

    max_steps: int = 200
    batch_size: int = 16
    learning_rate: float = 4e-3
    workers: int = 1
    """Number of processes that make sounds during training; 0 makes them in the training process."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.workers >= 0, self, "workers", "zero or more")


@register("training", "audio_encoder", config=AudioEncoderTraining)
class AudioEncoderStage(TrainingStage):
    """Trains the audio encoder to predict what is heard in new random sounds."""

    folder: ClassVar[str] = "audio_encoder"
    weights: ClassVar[str] = "audio_encoder.safetensors"
    goes_first: ClassVar[bool] = True

    def __init__(self, config: AudioEncoderTraining) -> None:
        self.config = config

    def check(self, model: Any) -> None:
        """Checks that the model has an audio encoder."""
        if model.audio_encoder is None:
            raise ConfigError("the stage audio_encoder needs a model with an audio_encoder, and this one does not hear")

    def part(self, model: Any) -> nn.Module:
        """Returns the audio encoder."""
        return model.audio_encoder

    def train(self, run: TrainingRun, folder: Path) -> Any:
        """Trains the audio encoder; see `TrainingStage`."""
        steps = self.config.max_steps * self.config.gradient_accumulation_steps * processes.count()
        sounds = Sounds(
            run.synthetic, run.model.audio_encoder, steps=steps, count=self.config.batch_size, seed=run.seed
        )
        trainer = fit(
            SoundState(run.model.audio_encoder),
            sounds,
            _single,
            replace(self.config, batch_size=1),  # a row of `Sounds` is a whole batch
            folder,
            what="train the audio encoder",
            seed=run.seed,
            report_to=run.report_to,
            workers=self.config.workers,
            heads=("heard",),
        )
        whole = trained_model(trainer, lambda: SoundState(run.build().audio_encoder))
        if whole is not None:
            run.model.audio_encoder = whole.encoder
        return run.model


class SoundState(nn.Module):
    """The audio encoder with a head that predicts what is heard; the head is discarded after training."""

    def __init__(self, encoder: AudioEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.heard = nn.Linear(encoder.width, len(SOUNDS))

    def forward(self, waveform: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Returns the `loss`.

        Args:
            waveform: float32, N S.
            targets: bool, N n K; see `sound_batch`.
        """
        features = pooled(self.encoder(waveform), targets.shape[1])  # N n E
        return {"loss": functional.binary_cross_entropy_with_logits(self.heard(features), targets.float())}


class Sounds(torch.utils.data.Dataset[Any]):
    """Batches of new sounds as model inputs; batch i depends only on the seed and on i."""

    def __init__(self, config: SyntheticConfig, encoder: AudioEncoder, *, steps: int, count: int, seed: int) -> None:
        families = tuple(dict.fromkeys([*config.families, "sound"]))
        self.config = replace(config, families=families)
        self.length_s, self.steps, self.count, self.seed = encoder.window_s, steps, count, seed

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        seed = self.seed * 1_000_003 + step
        samples, targets = sound_batch(self.config, seed, self.count, length_s=self.length_s)
        assert targets.shape[1] == self.length_s * INSTANTS_PER_S
        return {"waveform": torch.from_numpy(samples), "targets": torch.from_numpy(targets)}


def _single(rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Collates one row, which is a whole batch already."""
    return rows[0]
