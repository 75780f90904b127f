"""What passes between the LLM's layers and the stages that work inside it.

B rows, P positions of the whole row, K positions kept, N new positions of a pass, H query heads, G key heads, D head
width
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

Phase = Literal["prompt", "more prompt", "token"]
"""The first pass of a cache (or a pass without one), a later pass of several positions, a pass of one position."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Kept:
    """The positions that a group of layers works on."""

    position: Tensor
    """int64, B K. Where in the whole row each one stands; ascending, but for filling."""
    valid: Tensor
    """bool, B K. False where an entry only fills up a row of which fewer positions are kept, and at padding."""
    weight: Tensor | None = None
    """float32, B K. While thresholds are learned nothing is removed; attention to a position is multiplied by this."""

    def of(self, values: Tensor) -> Tensor:
        """Values B P of the kept positions: B K."""
        return values.gather(1, self.position)

    def counting(self, rows: Tensor) -> Tensor:
        """float32, B K: how much each position counts among `rows` (bool, B P): 0 at all others and at filling."""
        weight = 1.0 if self.weight is None else self.weight.detach()
        return (self.of(rows) & self.valid) * weight


@dataclass(frozen=True, kw_only=True, eq=False)
class PruneDecision:
    """What becomes of the positions that went through the layer before: one of the two."""

    keep: Tensor | None = None
    """bool, B K. Which go on."""
    weight: Tensor | None = None
    """float32, B K. How much attention to each still counts, with gradients; all go on."""


@dataclass(frozen=True, kw_only=True, eq=False)
class KeptKeys:
    """The keys that stay in the cache of one layer. Filling stands in front, so that the newest key stays last."""

    index: Tensor
    """int64, B G K. Slots of the layer's keys; equally many for all heads."""
    valid: Tensor | None = None
    """bool, B G K. False at slots that only fill up; None where there are none."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Reweighed:
    """Keys, values and logits as one attention is to see them; the cache is not changed."""

    keys: Tensor
    """B G K D."""
    values: Tensor
    """B G K D."""
    bias: Tensor | None = None
    """float, broadcast to B H N K. Added to the logits."""


@dataclass(kw_only=True, eq=False)
class LlmPass:
    """One prompt on its way through the layers, and what the stages make of it. Not to be used for a second prompt."""

    visual: Tensor
    """bool, B P."""
    question: Tensor
    """bool, B P. Text behind the visual tokens that may decide about them; answers in training are not part of it."""
    prompt: Tensor
    """bool, B P. What was given to be answered; False at padding and at answers, which decide nothing."""
    place: Tensor
    """int64, B P. Raster position of a visual token on its frame's grid; anything elsewhere."""
    frame: Tensor
    """int64, B P. The frame that a visual token shows."""
    valid: Tensor
    """bool, B P. False at padding."""
    grid: tuple[int, int] | None = None
    """Rows and columns of the grid; None where tokens have no place, and count by their number in the row."""
    stages: Sequence[Any] = ()
    """The `LlmStage`s that work in this pass, in order."""
    kept: dict[int, Kept] = field(default_factory=dict)
    """By the first layer that works on it."""
    received: dict[int, list[Mapping[str, Tensor]]] = field(default_factory=dict)
    """By layer: for each stage, name -> float32 B K, the attention that kept positions receive from its rows."""
    notes: list[dict[int, Any]] = field(default_factory=list)
    """For each stage: layer -> what it noted there, for its losses and for display."""
    unusable: bool = False
    """Set in training when numbers are not finite: nothing is to be learned from this pass."""

    def __post_init__(self) -> None:
        self.notes = self.notes or [{} for _ in self.stages]

    def kept_at(self, layer: int) -> Kept:
        """What a layer works on."""
        starts = [start for start in self.kept if start <= layer]
        return self.kept[max(starts)] if starts else self.everything()

    def everything(self) -> Kept:
        """All positions of the row."""
        rows, count = self.visual.shape
        return Kept(position=torch.arange(count, device=self.visual.device).expand(rows, count), valid=self.valid)

    def notes_of(self, stage: Any) -> dict[int, Any]:
        """What a stage has noted, by layer."""
        return next(notes for own, notes in zip(self.stages, self.notes, strict=True) if own is stage)


@dataclass(frozen=True, kw_only=True, eq=False)
class PruneView:
    """What a stage is shown before a layer, while a prompt is read."""

    layer: int
    """The layer that comes next."""
    layers: int
    """How many layers the LLM has."""
    current: LlmPass
    before: Kept
    """The positions that went through the layer before and that no earlier stage has removed since."""
    received: Mapping[str, Tensor]
    """Name -> float32, B K: attention that those positions received in the layer before, from the stage's rows."""
    notes: dict[int, Any]
    """By layer; what the stage notes."""


@dataclass(kw_only=True, eq=False)
class AttentionView:
    """What a stage is shown around the attention of one layer."""

    layer: int
    layers: int
    """How many layers the LLM has."""
    phase: Phase
    current: LlmPass
    query: Tensor
    """B H N D, rotated."""
    keys: Tensor
    """B G K D, rotated."""
    values: Tensor
    """B G K D."""
    query_position: Tensor
    """int64, B N. Where in the whole row each query stands."""
    position: Tensor
    """int64, B G K (or B 1 K, alike for all heads). Where in the whole row each key stands."""
    valid: Tensor
    """bool, like `position`. False at padding and filling."""
    scaling: float
    """Of the logits."""
    state: dict[str, Tensor]
    """The stage's own tensors of this layer, with B as their first axis; they follow beams."""
    received: Mapping[str, Tensor] = field(default_factory=dict)
    """After attention: name -> float32 B K, or B H K for a stage that asks for heads apart."""
