"""Choosing tokens that are as different from each other as possible: max-min selection, for many frames at once.

    first  = the token whose nearest other token is farthest
    then   = the token whose nearest chosen token is farthest, again and again

F frames, N tokens, K chosen, D width
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmllm.errors import InputError


def cosine_similarity(features: Tensor) -> Tensor:
    """float32, F N N: the cosine of each pair of tokens F N D; that of a zero vector is 0.

    Raises:
        InputError: if a feature is not finite.
    """
    features = features.detach().float()
    if not bool(features.isfinite().all()):
        raise InputError("features to compare tokens by must be finite")
    unit = torch.nn.functional.normalize(features, dim=-1)
    return unit @ unit.mT


def cosine_distance(features: Tensor) -> Tensor:
    """float32, F N N: 1 - `cosine_similarity`."""
    return 1 - cosine_similarity(features)


def max_min_order(distance: Tensor, count: int, mask: Tensor | None = None) -> Tensor:
    """Positions of the chosen tokens in the order of choice: int64, F K; of equal distances the earlier token is first.

    A smaller `count` gives the first entries of a larger one. A token is never chosen twice.

    Args:
        distance: float, F N N: row i, column j is how far token j is from a chosen token i.
        count: K, from 1 to N.
        mask: bool, F N. Tokens that cannot be chosen are False; where fewer than `count` are True, they fill up the
            end of the order.
    """
    frames, tokens, _ = distance.shape
    if not 1 <= count <= tokens:
        raise InputError(f"count = {count}: must be 1 to {tokens} tokens")
    if mask is None:
        mask = torch.ones(frames, tokens, dtype=torch.bool, device=distance.device)
    others = distance.masked_fill(~mask.unsqueeze(-1), torch.inf)
    # the smallest of a column is the token itself, which has distance 0
    nearest_other = others.topk(min(2, tokens), dim=-2, largest=False).values[:, -1]
    score = nearest_other.nan_to_num(posinf=torch.finfo(distance.dtype).max)
    nearest = torch.full_like(score, torch.inf)
    free, unused = mask.clone(), torch.ones_like(mask)
    order: list[Tensor] = []
    rows = torch.arange(frames, device=distance.device)
    for _ in range(count):
        # tokens that cannot be chosen come last, those chosen already after them
        best = score.masked_fill(~free, -torch.inf).argmax(-1)
        chosen = torch.where(free.any(-1), best, unused.to(torch.uint8).argmax(-1))
        order.append(chosen)
        free[rows, chosen] = unused[rows, chosen] = False
        nearest = torch.minimum(nearest, distance[rows, chosen])
        score = nearest
    return torch.stack(order, dim=-1)
