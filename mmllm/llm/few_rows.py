"""Products of few rows on all threads of a CPU. A new word is a product of one row, which torch gives to one thread.

    y = x W^T + b        thread p reads its own part of the outputs:  y[p] = x W[p]^T + b[p]

Weights stay where they are: a part is a view of their rows. A thread computes its outputs as one thread computes all of
them, so the numbers of one row are the same. It pays where weights are read from memory: float32, not in the smallest
layers.

R rows, I inputs, O outputs, P parts, ... positions
"""

from __future__ import annotations

import functools
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

_MOST_ROWS = 4
"""More rows are shared out by torch itself, in parts whose sums may be rounded in another order."""
_LEAST_WEIGHTS = 2**16
"""Below, starting the threads costs more than reading the weights."""
_BLOCK = 16
"""Outputs that a processor computes side by side; a part has whole blocks."""


class FewRowsLinear(nn.Linear):
    """A linear layer, whose product of few rows is shared out over the threads."""

    def forward(self, hidden: Tensor) -> Tensor:
        """... I -> ... O."""
        rows, parts = hidden.numel() // self.in_features, parts_of(self.out_features, torch.get_num_threads())
        if parts == 1 or not 0 < rows <= _MOST_ROWS or not _is_slow(hidden, self.weight):
            return super().forward(hidden)
        weight = self.weight.view(parts, -1, self.in_features).transpose(1, 2)  # P I O/P
        inputs = hidden.reshape(1, rows, self.in_features).expand(parts, -1, -1)  # P R I
        if self.bias is None:
            outputs = torch.bmm(inputs, weight)
        else:
            outputs = torch.baddbmm(self.bias.view(parts, 1, -1), inputs, weight)
        return outputs.transpose(0, 1).reshape(*hidden.shape[:-1], self.out_features)


@functools.cache
def parts_of(outputs: int, threads: int) -> int:
    """P: into how many equal parts of whole blocks a layer's outputs are cut, at most one for each thread."""
    blocks, rest = divmod(outputs, _BLOCK)
    return 1 if rest else max(parts for parts in range(1, threads + 1) if blocks % parts == 0)


def _is_slow(hidden: Tensor, weight: Tensor) -> bool:
    """Whether torch would read the weight with one thread: in float32 on a CPU."""
    return hidden.dtype == weight.dtype == torch.float32 and weight.device.type == "cpu" and weight.is_contiguous()


def share_rows(model: Any, decoder: nn.Module) -> None:
    """Shares the products of few rows of an LLM and its head out over the threads, in place.

    Args:
        model: a model of transformers; its output embeddings are the head.
        decoder: the LLM in it, without the head.
    """
    for layer in (*decoder.modules(), model.get_output_embeddings()):
        if is_linear(layer) and layer.weight.numel() >= _LEAST_WEIGHTS:
            layer.__class__ = FewRowsLinear  # the same weights, under the same names


def is_linear(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether this is a linear layer and nothing more, as those with adapters are."""
    return type(layer) in (nn.Linear, FewRowsLinear)
