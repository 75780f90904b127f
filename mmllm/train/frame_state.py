"""Predicts what a frame of a rendered scene shows from encoder features: the pre-training task of the tiny encoder.

F scenes, G colours, A actions, H shapes, N patches, C encoder width, S side in pixels
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from mmllm.encoders.tiny import TinyEncoder
from mmllm.errors import ConfigError
from mmllm.synthetic.scenes import CELLS
from mmllm.synthetic.world import ACTIONS, COLORS, SHAPES

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
"""Loss weights of the binary targets; targets that are rarely true have a high weight."""
CELL_EVENTS = 30.0
"""Loss weight of the actions in each cell. Without this loss, motion is learned ten times more slowly."""


class FrameState(nn.Module):
    """The encoder with heads that predict the state of a frame; the heads are discarded after training.

    From the mean over the patches (LITA's fast token) and from the class token, heads predict for each colour whether
    it is visible, its place, shape and actions, and what begins or ends. From each patch, heads predict the colour,
    shape, digit and action in its cell.

    Raises:
        ConfigError: if the encoder's grid is not the grid of the scenes.
    """

    def __init__(self, encoder: TinyEncoder) -> None:
        super().__init__()
        if encoder.grid != (CELLS, CELLS):
            raise ConfigError(f"the encoder's grid is {encoder.grid}; scenes need {(CELLS, CELLS)}")
        self.encoder = encoder
        flags = {name: len(ACTIONS) if "events" in name else 1 for name in FLAGS}
        per_color = {"place": 3, "shape": len(SHAPES)} | flags
        per_cell = {"cell_color": len(COLORS) + 1, "cell_shape": len(SHAPES) + 1, "cell_digit": DIGITS + 1}

        def heads(sizes: dict[str, int]) -> nn.ModuleDict:
            return nn.ModuleDict({name: nn.Linear(encoder.width, size) for name, size in sizes.items()})

        self.from_mean = heads({name: len(COLORS) * size for name, size in per_color.items()})
        self.from_class = heads({name: len(COLORS) * size for name, size in per_color.items()})
        self.from_patch = heads({**per_cell, "cell_events": len(ACTIONS)})

    def forward(self, pixels: Tensor, **targets: Tensor) -> dict[str, Tensor]:
        """Returns the `loss` over the middle frames of scenes.

        Args:
            pixels: float, F 3 3 S S: three frames of each scene in their order in time.
            targets: what the middle frame shows; see `scenes.frame_targets`.
        """
        patches = self.encoder.features(self.encoder.inputs(pixels)[:, 1])  # F N C
        loss = self._frame_loss(self.from_mean, patches.mean(dim=1), targets)
        loss = loss + 0.5 * self._frame_loss(self.from_class, self.encoder.class_token(patches), targets)
        predicted = {name: rearrange(head(patches), "f n k -> (f n) k") for name, head in self.from_patch.items()}
        for name in ("cell_color", "cell_shape", "cell_digit"):
            classes = rearrange(targets[name].long() + 1, "f y x -> (f y x)")  # class 0 is an empty cell
            loss = loss + functional.cross_entropy(predicted[name], classes)
        actions = rearrange(targets["cell_events"], "f y x a -> (f y x) a")
        occupied = rearrange(targets["cell_color"] >= 0, "f y x -> (f y x)")
        return {"loss": loss + CELL_EVENTS * _binary(predicted["cell_events"], actions, occupied)}

    def _frame_loss(self, heads: nn.ModuleDict, summary: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """Returns the loss of all predictions from a summary (F C) of the middle frames."""
        predicted = {name: rearrange(head(summary), "f (g k) -> f g k", g=len(COLORS)) for name, head in heads.items()}
        visible = targets["visible"]
        loss = torch.zeros((), device=summary.device)
        for name, weight in FLAGS.items():
            flags = targets[name] if targets[name].ndim == 3 else targets[name].unsqueeze(-1)
            loss = loss + weight * _binary(predicted[name], flags, None if name == "visible" else visible)
        place = torch.stack([targets["x"] - 0.5, targets["y"] - 0.5, 4 * (targets["radius"] - 0.1)], dim=-1)
        if visible.any():
            loss = loss + 8 * functional.mse_loss(predicted["place"][visible], place[visible])
            loss = loss + 0.5 * functional.cross_entropy(predicted["shape"][visible], targets["shape"].long()[visible])
        return loss


def _binary(logits: Tensor, targets: Tensor, where: Tensor | None = None) -> Tensor:
    """Returns the mean binary cross-entropy; if `where` is given, over the colours or cells that it marks."""
    losses = functional.binary_cross_entropy_with_logits(logits, targets.float(), reduction="none")
    if where is None:
        return losses.mean()
    weight = where.float().view(*where.shape, *[1] * (losses.ndim - where.ndim)).expand_as(losses)
    return (losses * weight).sum() / weight.sum().clamp(min=1)
