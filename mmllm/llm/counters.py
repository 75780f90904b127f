"""What a cache under a policy holds, and what it would hold without one. All numbers are for one row, on average.

B rows, G key heads, K keys, P positions of the prompt
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmllm.llm.kinds import PositionKind


@dataclass(eq=False)
class ContextCounts:
    """The counters of one cache, from its prompt to the end of the answer."""

    records: Sequence[Any] = ()
    """The layers of the cache, `RecordLayer`s."""
    frame: Tensor = field(default_factory=lambda: torch.empty(0))
    """int64, P. The frame of each position of the first row's prompt."""
    kind: Tensor = field(default_factory=lambda: torch.empty(0))
    """int64, P. The kind of each of these positions."""
    peak_bytes: float = 0.0
    """The most bytes of keys and values at a time."""
    prompt_positions: float = 0.0
    """Positions times layers that were computed before the answer."""
    refreshes: int = 0
    """How often a policy has chosen keys anew, over all layers."""
    narrowed: bool = False
    """Whether a query has seen fewer keys than there were."""
    attended: dict[int, tuple[float, float]] = field(default_factory=dict)
    """Layer -> keys that the last query saw: in the head that saw most, and the mean of all heads."""

    def note_bytes(self) -> None:
        """Notes how much is held now."""
        self.peak_bytes = max(self.peak_bytes, self.held_bytes)

    def note_pass(self, layer: int, new: Tensor, visible: Tensor, there: Tensor, phase: str) -> None:
        """Notes one attention.

        Args:
            layer: its number.
            new: bool, B N. Real queries.
            visible: bool, B H K. Keys that the last query saw.
            there: int64, B. How many real keys there were.
            phase: of the pass.
        """
        if phase != "token":
            self.prompt_positions += float(new.sum()) / len(new)
        seen = visible.sum(-1).float()
        self.narrowed = self.narrowed or bool((seen < there[:, None]).any())
        self.attended[layer] = float(seen.amax(1).mean()), float(seen.mean())

    @property
    def _filled(self) -> list[Any]:
        return [record for record in self.records if record.passes]

    @property
    def held_bytes(self) -> float:
        """Bytes of the tensors of keys and values."""
        return sum((record.keys.nbytes + record.values.nbytes) / len(record.keys) for record in self._filled)

    @property
    def needed_bytes(self) -> float:
        """Bytes of the real keys and values: without padding, and without filling."""
        total = 0.0
        for record in self._filled:
            heads, width = record.keys.shape[1], record.keys.shape[-1]
            kept = record.valid.expand(-1, heads, -1).sum()
            total += 2 * float(kept) * width * record.keys.element_size() / len(record.keys)
        return total

    @property
    def dense_bytes(self) -> float:
        """Bytes of all real positions that have been read, in every layer."""
        total = 0.0
        for record in self._filled:
            rows, heads, _, width = record.keys.shape
            total += 2 * float(record.read.sum()) * heads * width * record.keys.element_size() / rows
        return total

    def kept_share(self, row: int = 0) -> Tensor:
        """float, P': the share of layers and heads in which each position of a row (up to the last kept) is held."""
        length = max((int(record.position.max()) + 1 for record in self._filled), default=0)
        total = torch.zeros(length)
        for record in self._filled:
            position, valid = record.position[row].cpu(), record.valid[row].cpu()  # G K
            held = torch.zeros(len(position), length)
            held.scatter_(1, position, valid.float())  # a filling slot may repeat a position, and stands in front
            total += held.mean(0) / len(self._filled)
        return total

    @property
    def kept_by_frame(self) -> list[float]:
        """Tokens of each frame that the first row still holds, on average over layers and heads."""
        visual = (self.kind == PositionKind.VISUAL).cpu() & (self.frame >= 0).cpu()
        if not bool(visual.any()):
            return []
        share = torch.nn.functional.pad(self.kept_share(), (0, len(visual)))[: len(visual)][visual]
        number = self.frame.cpu()[visual]
        kept = torch.zeros(int(number.max()) + 1).index_add(0, number, share)
        return [round(count, 4) for count in kept.tolist()]

    def to_json(self) -> dict[str, Any]:
        """The counters as plain JSON values. `dense` says that nothing was left out."""
        most, mean = zip(*self.attended.values(), strict=True) if self.attended else ((0.0,), (0.0,))
        return {
            "dense": not self.narrowed and not any(bool(record.evicted.any()) for record in self._filled),
            "bytes_held": self.held_bytes,
            "bytes_needed": self.needed_bytes,
            "bytes_dense": self.dense_bytes,
            "bytes_peak": self.peak_bytes,
            "attended_most": max(most),
            "attended_mean": sum(mean) / len(mean),
            "prompt_positions": self.prompt_positions,
            "refreshes": self.refreshes,
        }
