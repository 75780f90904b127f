"""Pre-training of the tiny encoder on rendered scenes: what is where, and what it is doing.

LITA's encoder was trained on images with captions before LITA froze it. The tiny encoder gets its eyes here, from
fresh random scenes whose state is known; then it is frozen as well.

F scenes, G colours, A actions, H shapes, N patches, C encoder width, S side in pixels
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from mmllm.encoders.tiny import TinyEncoder
from mmllm.errors import ConfigError
from mmllm.fields import require
from mmllm.runtime import processes
from mmllm.synthetic.clips import SyntheticConfig
from mmllm.synthetic.scenes import CELLS, scene_batch
from mmllm.synthetic.world import ACTIONS, COLORS, SHAPES
from mmllm.train.fitting import fit, trained_model
from mmllm.train.schedule import Schedule

log = logging.getLogger(__name__)

DIGITS = 10
FLAGS = {
    "visible": 1.0,
    "visible_begin": 5.0,
    "visible_end": 5.0,
    "white": 1.0,
    "events": 20.0,
    "events_begin": 20.0,
    "events_end": 20.0,
}
"""Weights of the binary targets in the loss; what is rarely true gets a high one."""
CELL_EVENTS = 30.0
"""Weight of what happens in each cell. Without it motion is learned ten times more slowly."""


@dataclass(frozen=True, kw_only=True)
class FrameEncoderTraining(Schedule):
    """Every step learns from `batch_size` scenes that were never seen before."""

    max_steps: int = 600
    batch_size: int = 64
    learning_rate: float = 4e-3
    workers: int = 1
    """Processes that draw scenes while others are learned from; 0 draws them in between."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.workers >= 0, self, "workers", "zero or more")


class FrameState(nn.Module):
    """The encoder with heads that tell the state of a frame; the heads are thrown away afterwards.

    The mean over the patches (LITA's fast token) and the class token tell which colours are visible, where, of what
    shape, what they do, and what begins or ends; every patch tells the colour, shape, digit and action in its cell.
    """

    def __init__(self, encoder: TinyEncoder) -> None:
        super().__init__()
        if encoder.grid != (CELLS, CELLS):
            raise ConfigError(f"scenes are described on a {CELLS}x{CELLS} grid, not {encoder.grid}")
        self.encoder = encoder
        each = {"place": 3, "shape": len(SHAPES)} | {name: len(ACTIONS) if "events" in name else 1 for name in FLAGS}
        cells = {"cell_color": len(COLORS) + 1, "cell_shape": len(SHAPES) + 1, "cell_digit": DIGITS + 1}

        def heads(sizes: dict[str, int]) -> nn.ModuleDict:
            return nn.ModuleDict({name: nn.Linear(encoder.width, size) for name, size in sizes.items()})

        self.from_mean = heads({name: len(COLORS) * size for name, size in each.items()})
        self.from_class = heads({name: len(COLORS) * size for name, size in each.items()})
        self.from_patch = heads({**cells, "cell_events": len(ACTIONS)})

    def forward(self, pixels: Tensor, **targets: Tensor) -> dict[str, Tensor]:
        """The loss over the middle frames of scenes.

        Args:
            pixels: float, F 3 3 S S: the frames before, in the middle and after.
            targets: what the middle ones show, as `scenes.frame_targets` describes it.
        """
        patches = self.encoder.features(self.encoder.inputs(pixels)[:, 1])  # F N C
        loss = self._frame_loss(self.from_mean, patches.mean(dim=1), targets)
        loss = loss + 0.5 * self._frame_loss(self.from_class, self.encoder.class_token(patches), targets)
        told = {name: rearrange(head(patches), "f n k -> (f n) k") for name, head in self.from_patch.items()}
        for name in ("cell_color", "cell_shape", "cell_digit"):
            wanted = rearrange(targets[name].long() + 1, "f y x -> (f y x)")
            loss = loss + functional.cross_entropy(told[name], wanted)
        doing = rearrange(targets["cell_events"], "f y x a -> (f y x) a")
        taken = rearrange(targets["cell_color"] >= 0, "f y x -> (f y x)")
        return {"loss": loss + CELL_EVENTS * _binary(told["cell_events"], doing, taken)}

    def _frame_loss(self, heads: nn.ModuleDict, summary: Tensor, targets: dict[str, Tensor]) -> Tensor:
        told = {name: rearrange(head(summary), "f (g k) -> f g k", g=len(COLORS)) for name, head in heads.items()}
        visible = targets["visible"]
        loss = torch.zeros((), device=summary.device)
        for name, weight in FLAGS.items():
            flags = targets[name] if targets[name].ndim == 3 else targets[name].unsqueeze(-1)
            loss = loss + weight * _binary(told[name], flags, None if name == "visible" else visible)
        place = torch.stack([targets["x"] - 0.5, targets["y"] - 0.5, 4 * (targets["radius"] - 0.1)], dim=-1)
        if visible.any():
            loss = loss + 8 * functional.mse_loss(told["place"][visible], place[visible])
            loss = loss + 0.5 * functional.cross_entropy(told["shape"][visible], targets["shape"].long()[visible])
        return loss


def _binary(logits: Tensor, wanted: Tensor, where: Tensor | None = None) -> Tensor:
    """Mean binary cross-entropy, over the colours that `where` (F G) marks only."""
    losses = functional.binary_cross_entropy_with_logits(logits, wanted.float(), reduction="none")
    if where is None:
        return losses.mean()
    weight = where.float().view(*where.shape, *[1] * (losses.ndim - where.ndim)).expand_as(losses)
    return (losses * weight).sum() / weight.sum().clamp(min=1)


class Scenes(torch.utils.data.Dataset):
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


def train_frame_encoder(
    encoder: TinyEncoder,
    training: FrameEncoderTraining,
    scenes: SyntheticConfig,
    num_frames: int,
    output: Path,
    *,
    seed: int,
    report_to: Sequence[str] = (),
) -> None:
    """Trains the encoder in place, or loads what an earlier run of the same stage has trained.

    Args:
        encoder: the tiny encoder.
        training: how long and how fast.
        scenes: which worlds the scenes are drawn from.
        num_frames: frames that will be sampled of a clip; scenes have frames about as far apart.
        output: the stage's folder.
        seed: of the scenes.
        report_to: trackers of transformers.
    """
    if not isinstance(encoder, TinyEncoder):
        raise ConfigError("only the tiny encoder is trained on scenes: leave frame_encoder out for another")
    trained = output / "encoder.safetensors"
    if not trained.exists():
        state = FrameState(encoder)
        step = encoder.config.step
        sampled = (max(1, int(0.8 * num_frames / step)), max(1, int(1.25 * num_frames / step)))
        steps = training.max_steps * training.gradient_accumulation_steps * processes.count()
        rows = Scenes(scenes, encoder, steps=steps, count=training.batch_size, sampled=sampled, seed=seed)
        a_batch_a_row = replace(training, batch_size=1)
        with _threads_beside(training.workers):
            trainer = fit(
                state, rows, _only, a_batch_a_row, output,
                what="train the frame encoder", seed=seed, report_to=report_to, workers=training.workers,
                heads=("from_",),
            )  # fmt: skip
        whole = trained_model(trainer, lambda: FrameState(copy.deepcopy(encoder)))
        if processes.is_main():
            partial = trained.with_suffix(".part")
            save_file(whole.encoder.state_dict(), partial)
            partial.rename(trained)
        processes.wait()
    encoder.load_state_dict(load_file(trained))


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
