"""How relevant tokens are for texts, by cosines, and how relevances become comparable factors.

T frames or tiles, N tokens of a frame, M texts, E width
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmllm.pruning.selection import check_scores

Scale = Literal["partition", "batch"]
_LEAST = 1e-6
"""Added to relevances before they are divided, so that none is 0."""


def likeness(tokens: Tensor, texts: Tensor) -> Tensor:
    """float32, T N: the mean cosine of each token (T N E) with the texts (M E); 0 without texts."""
    cosines = normalize(tokens.float(), dim=-1) @ normalize(texts.float(), dim=-1).mT  # T N M
    return cosines.sum(-1) / max(1, len(texts))


def scaled_relevance(relevance: Tensor, scale: Scale, mask: Tensor | None = None) -> Tensor:
    """float32, T N: relevances T N from just above 0 to 1, the largest; 1 where all are equal, 0 at masked tokens.

    Args:
        relevance: float, T N.
        scale: whether least and largest are those of each partition, or of all.
        mask: bool, T N.

    Raises:
        InputError: if a relevance that is not masked is not finite.
    """
    mask = torch.ones_like(relevance, dtype=torch.bool) if mask is None else mask
    check_scores(relevance.masked_fill(~mask, 0.0))
    axes = (-1,) if scale == "partition" else (-2, -1)
    least = relevance.masked_fill(~mask, torch.inf).amin(axes, keepdim=True)
    span = relevance.masked_fill(~mask, -torch.inf).amax(axes, keepdim=True) - least
    scaled = torch.where(span > 0, (relevance - least + _LEAST) / span, torch.ones_like(relevance))
    return scaled.masked_fill(~mask, 0.0)


def weighted(relevance: Tensor, theta: float | None) -> Tensor:
    """Scaled relevances with their weight against difference; see `theta` of `CdPrunerConfig`."""
    return relevance if theta is None else (relevance * theta / (2 * (1 - theta))).exp()
