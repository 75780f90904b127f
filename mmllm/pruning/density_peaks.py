"""Clusters of tokens around density peaks (DPC-kNN, Rodriguez and Laio 2014), as several reducers merge tokens.

    density  = exp(- mean squared distance to the k nearest);   peak distance = distance to the nearest denser token
    centers  = the tokens with the highest density * peak distance;   every token joins its nearest center

F frames, clustered each by itself, N tokens, D width, M clusters
"""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK_ELEMENTS = 1 << 24
"""Distances that are held at a time, at most (64 MiB)."""


def density_peaks(features: Tensor, clusters: int, neighbours: int = 7) -> tuple[Tensor, Tensor]:
    """Centers (int64, F M, the highest score first) and the cluster of each token (int64, F N).

    Args:
        features: float, F N D.
        clusters: M, from 1 to N.
        neighbours: k, at most M; each token counts as one of its own neighbours.
    """
    number = torch.arange(clusters, device=features.device)
    centers, members = [], []
    for part in _blocks(features):
        distance = _distance(part)
        # of equal scores, which there are with few clusters, those that the original's topk gives
        own = _score(distance, min(clusters, neighbours)).topk(clusters).indices
        nearest = distance.gather(2, own.unsqueeze(1).expand(-1, distance.shape[1], -1)).argmin(-1)
        centers.append(own)
        members.append(nearest.scatter(1, own, number.expand_as(own)))
    return torch.cat(centers), torch.cat(members)


def peak_order(features: Tensor, neighbours: int) -> Tensor:
    """The tokens of each frame by falling density * peak distance, of equal ones the earlier first: int64, F N.

    Args:
        features: float, F N D.
        neighbours: k; each token counts as one of its own neighbours.
    """
    scores = [_score(_distance(part), min(features.shape[1], neighbours)) for part in _blocks(features)]
    return torch.cat(scores).argsort(dim=-1, descending=True, stable=True)


def _blocks(features: Tensor) -> tuple[Tensor, ...]:
    """A few frames at a time, float32, so that their distances fit."""
    return features.float().split(max(1, _BLOCK_ELEMENTS // max(features.shape[1], 1) ** 2))


def _distance(features: Tensor) -> Tensor:
    """float32, F N N."""
    return torch.cdist(features, features) / features.shape[-1] ** 0.5


def _score(distance: Tensor, nearest: int) -> Tensor:
    """float32, F N: density * peak distance."""
    density = (-distance.topk(nearest, largest=False).values.square().mean(-1)).exp()
    denser = density.unsqueeze(-2) > density.unsqueeze(-1)  # F N N: column is denser than row
    peak = distance.masked_fill(~denser, torch.inf).amin(-1)
    peak = torch.where(denser.any(-1), peak, distance.flatten(1).amax(-1, keepdim=True))
    return density * peak
