"""Choosing tokens by a determinantal point process: a set of relevant tokens that differ, one after the other.

    kernel  = relevance_i * cosine_ij * relevance_j;    a set is better if the determinant of its part is larger
    gain    = a token's own entry, less what the tokens chosen before explain of it;   the largest is chosen next

The gains are updated as in a Cholesky factorisation (Chen and others 2018), so that K choices take O(K^2 N).

F partitions, N tokens, K chosen, D width
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmllm.errors import InputError
from mmllm.pruning.diversity import cosine_similarity

_EXPLAINED = 1e-6
"""A token with a smaller share of its own entry left is a mixture of those chosen: the rest is rounding."""


def relevance_kernel(features: Tensor, relevance: Tensor) -> Tensor:
    """float32, F N N, of tokens F N D and their relevance F N.

    Raises:
        InputError: if a feature is not finite.
    """
    cosine = cosine_similarity(features)
    cosine.diagonal(dim1=1, dim2=2).round_()  # 1, or 0 for a zero vector: rounding must not choose among equals
    return relevance.unsqueeze(-1) * cosine * relevance.unsqueeze(-2)


def determinantal_order(kernel: Tensor, relevance: Tensor, count: int, mask: Tensor | None = None) -> Tensor:
    """Positions of the chosen tokens in the order of choice: int64, F K; of equal gains the earlier token is first.

    A smaller `count` gives the first entries of a larger one. Once every other token is a mixture of those chosen, the
    most relevant ones follow: no set has a determinant above 0 any more.

    Args:
        kernel: float, F N N. Symmetric and positive semidefinite.
        relevance: float, F N.
        count: K, from 1 to N.
        mask: bool, F N. Tokens that cannot be chosen are False; where fewer than `count` are True, they fill up the
            end of the order.
    """
    partitions, tokens, _ = kernel.shape
    if not 1 <= count <= tokens:
        raise InputError(f"count = {count}: must be 1 to {tokens} tokens")
    own = kernel.diagonal(dim1=1, dim2=2)  # F N
    gain, taken = own.clone(), torch.zeros_like(own, dtype=torch.bool)
    mask = ~taken if mask is None else mask
    explained = kernel.new_zeros(partitions, count, tokens)
    rows, order = torch.arange(partitions, device=kernel.device), []
    for step in range(count):
        free = mask & ~taken
        free = torch.where(free.any(-1, keepdim=True), free, ~taken)
        useful = free & mask & (gain > _EXPLAINED * own)
        goes_on = useful.any(-1)
        best = gain.masked_fill(~useful, -torch.inf).argmax(-1)
        chosen = torch.where(goes_on, best, relevance.masked_fill(~free, -torch.inf).argmax(-1))
        taken[rows, chosen] = True
        order.append(chosen)
        before = explained[:, :step]
        rest = kernel[rows, chosen] - torch.einsum("fs,fsn->fn", before[rows, :, chosen], before)
        scale = gain[rows, chosen].where(goes_on, torch.ones_like(own[:, 0])).sqrt()
        explained[:, step] = (rest / scale.unsqueeze(-1)).masked_fill(~goes_on.unsqueeze(-1), 0.0)
        gain = gain - explained[:, step].square()
    return torch.stack(order, dim=-1)
