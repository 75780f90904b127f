"""Pre-training of the tiny encoder on rendered scenes: what is where, and what it is doing.

LITA's encoder was trained on images with captions before LITA froze it. The tiny encoder gets its eyes here, from
fresh random scenes whose state is known; then it is frozen as well.

F scenes, G colours, A actions, H shapes, N patches, C encoder width, S side in pixels
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from mmllm.datasets.synthetic.clips import SyntheticConfig
from mmllm.datasets.synthetic.scenes import CELLS, scene_batch
from mmllm.datasets.synthetic.world import ACTIONS, COLORS, SHAPES
from mmllm.encoders.tiny import TinyEncoder
from mmllm.errors import ConfigError
from mmllm.fields import require
from mmllm.train.fitting import fit
from mmllm.train.schedule import Schedule

log = logging.getLogger(__name__)

DIGITS = 10


@dataclass(frozen=True, kw_only=True)
class FrameEncoderTraining(Schedule):
    """Every step learns from `batch_size` scenes that were never seen before."""

    max_steps: int = 600
    batch_size: int = 64
    learning_rate: float = 2e-3
    workers: int = 1
    """Processes that draw scenes while others are learned from; 0 draws them in between."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.workers >= 0, self, "workers", "zero or more")


class FrameState(nn.Module):
    """The encoder with heads that tell the state of a frame; the heads are thrown away afterwards.

    The mean over the patches (LITA's fast token) and the class token tell which colours are visible, where, of what
    shape, and what they do; every patch tells the colour, shape and digit in its cell.
    """

    def __init__(self, encoder: TinyEncoder) -> None:
        super().__init__()
        if encoder.grid != (CELLS, CELLS):
            raise ConfigError(f"scenes are described on a {CELLS}x{CELLS} grid, not {encoder.grid}")
        self.encoder = encoder
        self.sizes = {
            "visible": len(COLORS),
            "white": len(COLORS),
            "place": len(COLORS) * 3,
            "shape": len(COLORS) * len(SHAPES),
            "events": len(COLORS) * len(ACTIONS),
        }
        cells = {"cell_color": len(COLORS) + 1, "cell_shape": len(SHAPES) + 1, "cell_digit": DIGITS + 1}
        self.from_mean = nn.ModuleDict({name: nn.Linear(encoder.width, n) for name, n in self.sizes.items()})
        self.from_class = nn.ModuleDict({name: nn.Linear(encoder.width, n) for name, n in self.sizes.items()})
        self.from_patch = nn.ModuleDict({name: nn.Linear(encoder.width, n) for name, n in cells.items()})

    def forward(self, pixels: Tensor, **targets: Tensor) -> dict[str, Tensor]:
        """The loss over the middle frames of scenes.

        Args:
            pixels: float, F 3 3 S S: the frames before, in the middle and after.
            targets: what the middle ones show, as `scenes.frame_targets` describes it.
        """
        patches = self.encoder.features(self.encoder.inputs(pixels)[:, 1])  # F N C
        loss = self._frame_loss(self.from_mean, patches.mean(dim=1), targets)
        loss = loss + 0.5 * self._frame_loss(self.from_class, self.encoder.class_token(patches), targets)
        for name, head in self.from_patch.items():
            wanted = rearrange(targets[name].long() + 1, "f y x -> (f y x)")
            loss = loss + functional.cross_entropy(rearrange(head(patches), "f n k -> (f n) k"), wanted)
        return {"loss": loss}

    def _frame_loss(self, heads: nn.ModuleDict, summary: Tensor, targets: dict[str, Tensor]) -> Tensor:
        told = {name: rearrange(head(summary), "f (g k) -> f g k", g=len(COLORS)) for name, head in heads.items()}
        visible = targets["visible"]
        loss = _binary(told["visible"].squeeze(-1), visible)
        loss = loss + _binary(told["white"].squeeze(-1), targets["white"], visible)
        loss = loss + 4 * _binary(told["events"], targets["events"], visible)
        place = torch.stack([targets["x"] - 0.5, targets["y"] - 0.5, 4 * (targets["radius"] - 0.1)], dim=-1)
        if visible.any():
            loss = loss + 8 * functional.mse_loss(told["place"][visible], place[visible])
            loss = loss + 0.5 * functional.cross_entropy(told["shape"][visible], targets["shape"].long()[visible])
        return loss

    @torch.no_grad()
    def tell(self, pixels: Tensor) -> dict[str, Tensor]:
        """What the mean token says of the middle frames: probabilities F G (visible, white) and F G A (events)."""
        summary = self.encoder.features(self.encoder.inputs(pixels)[:, 1]).mean(dim=1)
        told = {name: self.from_mean[name](summary).sigmoid() for name in ("visible", "white", "events")}
        return {**told, "events": rearrange(told["events"], "f (g a) -> f g a", g=len(COLORS))}


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
        rows = Scenes(scenes, encoder, steps=training.max_steps, count=training.batch_size, sampled=sampled, seed=seed)
        a_batch_a_row = replace(training, batch_size=1)
        fit(state, rows, _only, a_batch_a_row, output, seed=seed, report_to=report_to, workers=training.workers)
        partial = trained.with_suffix(".part")
        save_file(encoder.state_dict(), partial)
        partial.rename(trained)
    encoder.load_state_dict(load_file(trained))


def _only(rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """A row is a batch already."""
    return rows[0]
