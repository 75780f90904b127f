"""Pre-training of the tiny encoder on rendered scenes: what is where, and what it is doing.

LITA's encoder was trained on images with captions before LITA froze it. The tiny encoder gets its eyes here, from
fresh random scenes whose state is known; then it is frozen as well.
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
    """Every step learns from `batch_size` scenes that were never seen before."""

    max_steps: int = 600
    batch_size: int = 64
    learning_rate: float = 4e-3
    workers: int = 1
    """Processes that draw scenes while others are learned from; 0 draws them in between."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.workers >= 0, self, "workers", "zero or more")


@register("training", "frame_encoder", config=FrameEncoderTraining)
class FrameEncoderStage(TrainingStage):
    """Trains the tiny encoder to tell the state of fresh random scenes."""

    folder: ClassVar[str] = "encoder"
    weights: ClassVar[str] = "encoder.safetensors"
    goes_first: ClassVar[bool] = True

    def __init__(self, config: FrameEncoderTraining) -> None:
        self.config = config

    def check(self, model: Any) -> None:
        """Refuses another encoder than the tiny one."""
        if not isinstance(model.encoder, TinyEncoder):
            raise ConfigError("only the tiny encoder is trained on scenes: leave frame_encoder out for another")

    def part(self, model: Any) -> nn.Module:
        """The encoder."""
        return model.encoder

    def train(self, run: TrainingRun, folder: Path) -> Any:
        """Trains the encoder; see `TrainingStage`."""
        state = FrameState(run.model.encoder)
        a_batch_a_row = replace(self.config, batch_size=1)
        with _threads_beside(self.config.workers):
            trainer = fit(
                state,
                self._scenes(run),
                _only,
                a_batch_a_row,
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
        """Batches for all steps, of frames about as far apart as those that are sampled of a clip."""
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
    """Batches of fresh scenes as model inputs; batch i is a pure function of the seed and i."""

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


def _only(rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """A row is a batch already."""
    return rows[0]


@contextlib.contextmanager
def _threads_beside(workers: int) -> Iterator[None]:
    """Leaves a core to each process that draws scenes: threads that wait for each other lose more than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before - workers))
    try:
        yield
    finally:
        torch.set_num_threads(before)
