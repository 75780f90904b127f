"""How much attention of the encoder a patch receives, without ever holding an N x N matrix.

F frames, H heads, Q queries, N keys, D width of a head
"""

from __future__ import annotations

import torch
from einops import rearrange, reduce
from torch import Tensor

_BLOCK_ELEMENTS = 1 << 24
"""How many attention weights `received_attention` holds at a time, at most (64 MiB in float32)."""
_BLOCK_QUERIES = 64
"""How many queries it takes at a time, at most."""


@torch.no_grad()
def attention_row(query: Tensor, keys: Tensor, *, heads: int) -> Tensor:
    """Softmax attention of one query over all keys, averaged over the heads.

    It is the row that an eager attention would have computed, but costs only one dot product a key.

    Args:
        query: F (H D), the projected query, unscaled.
        keys: F N (H D), the projected keys.
        heads: H.

    Returns:
        float32, F N; each row sums to 1.
    """
    query = rearrange(query.float(), "f (h d) -> f h d", h=heads)
    keys = rearrange(keys.float(), "f n (h d) -> f h n d", h=heads)
    logits = torch.einsum("fhd,fhnd->fhn", query, keys) * query.shape[-1] ** -0.5
    return reduce(logits.softmax(-1), "f h n -> f n", "mean")


@torch.no_grad()
def mean_keys(keys: Tensor, *, heads: int) -> Tensor:
    """float32, F N D: the keys F N (H D) of an attention, mean over the heads."""
    return reduce(keys.float(), "f n (h d) -> f n d", "mean", h=heads)


@torch.no_grad()
def received_attention(queries: Tensor, keys: Tensor, *, heads: int) -> Tensor:
    """Softmax attention that each key receives, averaged over the heads and over all queries.

    VisionZip and VisPruner rank by it where an encoder has no class token. Queries are taken in blocks, and each block
    is summed before the next, so that memory stays bounded for any number of patches.

    Args:
        queries: F Q (H D), projected and unscaled.
        keys: F N (H D).
        heads: H.

    Returns:
        float32, F N; each row sums to 1.
    """
    queries = rearrange(queries.float(), "f q (h d) -> f h q d", h=heads)
    keys = rearrange(keys.float(), "f n (h d) -> f h n d", h=heads)
    frames, _, count, width = queries.shape
    received = keys.new_zeros(frames, keys.shape[2])
    step = min(_BLOCK_QUERIES, max(1, _BLOCK_ELEMENTS // max(1, frames * heads * keys.shape[2])))
    for start in range(0, count, step):
        logits = torch.einsum("fhqd,fhnd->fhqn", queries[:, :, start : start + step], keys) * width**-0.5
        received += reduce(logits.softmax(-1), "f h q n -> f n", "sum")
    return received / (heads * count)
