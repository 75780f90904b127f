"""A decoder whose last layer finishes the last positions only: nobody reads what it gives for the others.

    positions    0 1 2 ... N-17 | N-16 ... N-1         keys and values: of all, in every layer
    last layer   attention      | attention, then its feed-forward part

Whole blocks of rows are finished, since a product of one row is rounded in another way. The weights are those of the
decoder, which stays as it is.

B rows, N positions, R of them finished, D width
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmllm.llm.layers import with_modules

_BLOCK = 16
"""Rows of which products are those of a longer matrix, bit for bit if one thread computes both."""


class LastRows(nn.Module):
    """A feed-forward part that is computed for the last R positions; 0 for the others.

    Args:
        mlp: the feed-forward part.
        rows: R.
    """

    def __init__(self, mlp: nn.Module, rows: int) -> None:
        super().__init__()
        self.mlp, self.rows = mlp, rows

    def forward(self, hidden: Tensor) -> Tensor:
        """B N D -> B N D."""
        finished: Tensor = self.mlp(hidden[:, -self.rows :])
        return nn.functional.pad(finished, (0, 0, hidden.shape[1] - finished.shape[1], 0))


def finishing_last(decoder: Any, positions: int, count: int = 1) -> Any:
    """The decoder for a pass of which only the last hidden states are read.

    Args:
        decoder: without LM head, such as `LlamaModel`.
        positions: N, of the pass.
        count: how many hidden states are read.

    Returns:
        A decoder with the same weights; the given one if the pass is short, or its last layer is no plain one.
    """
    rows = -(-count // _BLOCK) * _BLOCK
    layers: Any = getattr(decoder, "layers", ())
    if not len(layers) or positions < 2 * rows or torch.is_grad_enabled():
        return decoder
    last = layers[-1]
    mlp: Any = getattr(last, "mlp", None)
    if not isinstance(getattr(mlp, "down_proj", None), nn.Module):  # experts, or another name
        return decoder
    if any(hasattr(part, "_hf_hook") for part in (decoder, last, mlp)):  # offloaded: hooks know their module
        return decoder
    return with_modules(decoder, layers=nn.ModuleList([*layers[:-1], with_modules(last, mlp=LastRows(mlp, rows))]))
