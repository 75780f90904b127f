"""What reinforcement learning needs of a kind of model: prompts with their media, logits of answers, and times read.

B rows, L text positions, K positions of the longest answer, V vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from mmllm.datasets.records import Question


@dataclass(frozen=True, kw_only=True)
class Said:
    """A generated answer, read."""

    text: str
    """With times in seconds."""
    spans: tuple[tuple[float, float], ...] | None
    """In seconds; empty if it says that the event does not happen, None if it has no readable times."""


class Policy(Protocol):
    """A model that answers questions about videos, with its questions."""

    questions: Sequence[Question]
    """Those of the training; a row is a number in this list."""
    tokenizer: Any
    """Its tokenizer, with a padding token."""
    unsaid: Sequence[int]
    """Ids that no answer may have: placeholders of media."""

    def prompt(self, row: int) -> list[int]:
        """Ids of a row's prompt, up to the place where the answer begins."""

    def duration_s(self, row: int) -> float:
        """Length of a row's video in seconds."""

    def sampled(self, model: Any, rows: Sequence[int], ids: Tensor, mask: Tensor, options: dict[str, Any]) -> Tensor:
        """New ids B K.

        Args:
            model: without wrappers of processes and adapters.
            rows: of each prompt.
            ids, mask: int64, B L, the prompts, padded on the left.
            options: of `generate`.
        """

    def logits(self, model: Any, rows: Sequence[int], ids: Tensor, mask: Tensor, count: int) -> Tensor:
        """B K V: what is predicted for each of the `count` last ids, with a gradient.

        Args:
            model: with its wrappers.
            rows: of each prompt.
            ids, mask: int64, B L, prompts padded on the left with answers padded on the right.
            count: K.
        """

    def read(self, row: int, ids: Sequence[int]) -> Said:
        """A generated answer."""
