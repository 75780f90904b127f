"""Pre-trains the tiny encoder on rendered scenes: it predicts which objects are visible, where, and what they do.

LITA uses a frozen encoder that was trained on images with captions. The tiny encoder is trained here instead, on new
random scenes whose state is known, and is frozen afterwards.

F scenes, T = 3 frames of a scene, Y X pixels, C colour channels
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from mmllm.encoders.tiny import TinyEncoder
from mmllm.errors import ConfigError
from mmllm.fields import require
from mmllm.registry import register
from mmllm.runtime import processes
from mmllm.synthetic.clips import SyntheticConfig
from mmllm.synthetic.scenes import scene_batch
from mmllm.train.fitting import fit, trained_model
from mmllm.train.frame_state import FrameState
from mmllm.train.schedule import TrainingSchedule
from mmllm.train.stage import TrainingRun, TrainingStage


@dataclass(frozen=True, kw_only=True)
class FrameEncoderTraining(TrainingSchedule):
    """Settings of the pre-training; each step uses `batch_size` new scenes."""

    max_steps: int = 600
    batch_size: int = 64
    learning_rate: float = 4e-3
    workers: int = 1
    """Number of processes that render scenes during training; 0 renders them in the training process."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.workers >= 0, self, "workers", "zero or more")


@register("training", "frame_encoder", config=FrameEncoderTraining)
class FrameEncoderStage(TrainingStage):
    """Trains the tiny encoder to predict the state of new random scenes."""

    folder: ClassVar[str] = "encoder"
    weights: ClassVar[str] = "encoder.safetensors"
    goes_first: ClassVar[bool] = True

    def __init__(self, config: FrameEncoderTraining) -> None:
        self.config = config

    def check(self, model: Any) -> None:
        """Checks that the model has the tiny encoder."""
        if not isinstance(model.encoder, TinyEncoder):
            given = type(model.encoder).__name__
            raise ConfigError(
                f"only the tiny encoder is trained on scenes, not {given}: remove the stage frame_encoder"
            )

    def part(self, model: Any) -> nn.Module:
        """Returns the encoder."""
        return model.encoder

    def train(self, run: TrainingRun, folder: Path) -> Any:
        """Trains the encoder; see `TrainingStage`."""
        state = FrameState(run.model.encoder)
        batch_per_row = replace(self.config, batch_size=1)  # a row of `Scenes` is a whole batch
        with _threads_for_workers(self.config.workers):
            trainer = fit(
                state,
                self._scenes(run),
                _single,
                batch_per_row,
                folder,
                what="train the frame encoder",
                seed=run.seed,
                report_to=run.report_to,
                workers=self.config.workers,
                heads=("from_",),
            )
        whole = trained_model(trainer, lambda: FrameState(run.build().encoder))
        if whole is not None:
            run.model.encoder = whole.encoder
        return run.model

    def _scenes(self, run: TrainingRun) -> Scenes:
        """Returns the batches of all steps. The time between frames is similar to that in sampled clips."""
        step, num_frames = run.model.encoder.config.step, run.processor.num_frames
        sampled = (max(1, int(0.8 * num_frames / step)), max(1, int(1.25 * num_frames / step)))
        steps = self.config.max_steps * self.config.gradient_accumulation_steps * processes.count()
        return Scenes(
            run.synthetic,
            run.model.encoder,
            steps=steps,
            count=self.config.batch_size,
            sampled=sampled,
            seed=run.seed,
        )


class Scenes(torch.utils.data.Dataset[Any]):
    """Batches of new scenes as model inputs; batch i depends only on the seed and on i."""

    def __init__(
        self,
        config: SyntheticConfig,
        encoder: TinyEncoder,
        *,
        steps: int,
        count: int,
        sampled: tuple[int, int],
        seed: int,
    ) -> None:
        self.config = config
        self.transform = encoder.config.frames
        self.steps = steps
        self.count = count
        self.sampled = sampled
        self.seed = seed

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        frames, targets = scene_batch(self.config, self.seed * 1_000_003 + step, self.count, sampled=self.sampled)
        pixels = self.transform(rearrange(frames, "f t y x c -> (f t) y x c"))
        batch = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in targets.items()}
        batch["pixels"] = rearrange(torch.from_numpy(pixels), "(f t) c y x -> f t c y x", t=3)
        return batch


def _single(rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Collates one row, which is a whole batch already."""
    return rows[0]


@contextlib.contextmanager
def _threads_for_workers(workers: int) -> Iterator[None]:
    """Leaves a core for each process that renders scenes: with more threads than cores, training is slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before - workers))
    try:
        yield
    finally:
        torch.set_num_threads(before)
