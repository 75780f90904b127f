"""Clusters of tokens around density peaks (DPC-kNN, Rodriguez and Laio 2014), as several reducers merge tokens.

    density  = exp(- mean squared distance to the k nearest);   peak distance = distance to the nearest denser token
    centers  = the tokens with the highest density * peak distance;   every token joins its nearest center

N tokens, D width, M clusters
"""

from __future__ import annotations

import torch
from torch import Tensor


def density_peaks(features: Tensor, clusters: int, neighbours: int = 7) -> tuple[Tensor, Tensor]:
    """Centers (int64, M, the highest score first) and the cluster of each token (int64, N).

    Args:
        features: float, N D.
        clusters: M, from 1 to N.
        neighbours: k; each token counts as one of its own neighbours.
    """
    features = features.float()
    _count, width = features.shape
    distance = torch.cdist(features, features) / width**0.5
    nearest = distance.topk(min(clusters, neighbours), largest=False).values
    density = (-nearest.square().mean(-1)).exp()
    denser = density.unsqueeze(0) > density.unsqueeze(1)  # N N: column is denser than row
    peak = distance.masked_fill(~denser, torch.inf).amin(-1)
    peak = torch.where(denser.any(-1), peak, distance.max())
    centers = (density * peak).topk(clusters).indices
    cluster = distance[:, centers].argmin(-1)
    cluster[centers] = torch.arange(clusters, device=features.device)
    return centers, cluster
