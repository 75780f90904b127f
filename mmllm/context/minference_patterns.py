"""The patterns of MInference, as pure functions of queries and keys (arXiv 2407.02490).

B rows, N positions of the prompt, H query heads, G key heads, D head width, M blocks, S blocks that are seen
"""

from __future__ import annotations

import torch
from einops import reduce, repeat
from torch import Tensor
from torch.nn.functional import pad

from mmllm.context.choosing import logits_of
from mmllm.context.keeping import best_keys

LAST_ROWS = 64
"""Rows at the end of the prompt whose attention is looked at."""
FORCED_COLUMNS = 30
"""First columns that always stay."""
FORCED_DIAGONALS = 100
"""Nearest diagonals that always stay, as far as their number allows."""
FEWEST_DIAGONALS = 50


def vertical_slash_scores(query: Tensor, keys: Tensor, valid: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """Attention of the last 64 real rows, added up by columns and by diagonals: float32, B H N each.

    A diagonal's number is that of its query less that of its key.

    Args:
        query: B H N D, rotated.
        keys: B G N D, rotated.
        valid: bool, B N. False at padding.
        scaling: of the logits.
    """
    count = query.shape[2]
    rows = min(LAST_ROWS, count)
    logits = logits_of(query[:, :, -rows:], keys) * scaling
    number = torch.arange(count, device=query.device)
    offset = number[-rows:, None] - number  # rows N
    seen = (offset >= 0) & valid[:, None, None, :]
    weights = logits.masked_fill(~seen, torch.finfo(logits.dtype).min).softmax(-1) * seen
    weights = weights * valid[:, None, -rows:, None]
    vertical = weights.sum(2)
    slash = torch.zeros_like(vertical).index_add_(
        2, offset.clamp(min=0).flatten(), weights.flatten(2)
    )  # cells above the diagonal have no weight
    return vertical, slash


def vertical_slash(
    query: Tensor, keys: Tensor, valid: Tensor, vertical: int, slash: int, scaling: float
) -> tuple[Tensor, Tensor]:
    """Columns and diagonals that stay: bool, B H N each.

    Of diagonals that must stay, the nearest do where there is not room for all. The released code keeps any of them.

    Args:
        query, keys, valid, scaling: as for `vertical_slash_scores`.
        vertical, slash: how many; at least 30 and 50.
    """
    columns, diagonals = vertical_slash_scores(query, keys, valid, scaling)
    number = (valid.cumsum(-1) - 1).unsqueeze(1)  # among real positions
    place = torch.arange(valid.shape[1], device=valid.device)
    columns = columns.masked_fill((number < FORCED_COLUMNS) & valid.unsqueeze(1), torch.finfo(columns.dtype).max)
    diagonals = diagonals.masked_fill(place < FORCED_DIAGONALS, torch.finfo(diagonals.dtype).max)
    among = (place < valid.sum(-1, keepdim=True)).unsqueeze(1)  # a row has as many diagonals as positions
    rows = len(valid)
    column_count = torch.full((rows,), max(vertical, FORCED_COLUMNS), device=valid.device)
    diagonal_count = torch.full((rows,), max(slash, FEWEST_DIAGONALS), device=valid.device)
    return (
        best_keys(columns, valid.unsqueeze(1).expand_as(columns), column_count),
        best_keys(diagonals, among.expand_as(diagonals), diagonal_count),
    )


def seen_by(columns: Tensor, diagonals: Tensor) -> Tensor:
    """bool, B H N N: what is in a column or on a diagonal (bool, B H N each) that stays, in causal order."""
    number = torch.arange(columns.shape[-1], device=columns.device)
    offset = number[:, None] - number
    return (columns.unsqueeze(2) | diagonals[..., offset.clamp(min=0)]) & (offset >= 0)


def block_index(query: Tensor, keys: Tensor, blocks: int, block: int) -> Tensor:
    """int64, B H M S: for each block of queries, the blocks of keys with the highest logits of their means, ascending.

    As released, positions are filled up with zeros to the next multiple of the block, by a whole block where there is
    nothing to fill; means are not scaled; a block sees those that begin no later. A block that sees fewer blocks than S
    has others in its list, which change nothing: the attention stays causal.

    Args:
        query: B H N D, rotated.
        keys: B H N D, rotated, repeated for each query head.
        blocks: S; at most as many as there are.
        block: positions of one.
    """
    missing = block - query.shape[2] % block
    means = [
        reduce(pad(part.float(), (0, 0, 0, missing)), "b h (m w) d -> b h m d", "mean", w=block)
        for part in (query, keys)
    ]
    logits = means[0] @ means[1].mT
    count = logits.shape[-1]
    later = torch.ones(count, count, dtype=torch.bool, device=query.device).triu(1)
    order = logits.masked_fill(later, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    return order[..., : min(blocks, count)].sort(-1).values


def seen_in_blocks(index: Tensor, count: int, block: int) -> Tensor:
    """bool, B H N N, N = count: what is in the listed blocks, in causal order, and each position itself."""
    blocks = index.shape[2]
    listed = torch.zeros(*index.shape[:3], blocks, dtype=torch.bool, device=index.device).scatter(-1, index, True)
    whole = repeat(listed, "b h m s -> b h (m w) (s v)", w=block, v=block)[..., :count, :count]
    causal = torch.ones(count, count, dtype=torch.bool, device=index.device).tril()
    return whole & causal


def blocks_seen(query: Tensor, keys: Tensor, valid: Tensor, blocks: int, block: int) -> Tensor:
    """bool, B H N N: what a block-sparse pattern lets each position see; blocks count from the first real position.

    Args:
        query, keys: as for `block_index`.
        valid: bool, B N. False at padding.
        blocks, block: as for `block_index`.
    """
    count = query.shape[2]
    order = (~valid).to(torch.uint8).argsort(dim=-1, stable=True)  # real positions first
    along = order[:, None, :, None]
    real = valid.gather(1, order)[:, None, :, None]
    query, keys = (part.gather(2, along.expand(part.shape)) * real for part in (query, keys))
    seen = seen_in_blocks(block_index(query, keys, blocks, block), count, block)
    number = (valid.cumsum(-1) - 1).clamp(min=0)
    lines = number[:, None, :, None].expand(-1, seen.shape[1], -1, count)
    columns = number[:, None, None, :].expand(-1, seen.shape[1], count, -1)
    return seen.gather(2, lines).gather(3, columns)
