"""Routes through the feed-forward parts of a model: skip, small or big at each layer, and what each costs.

L layers, R routes, T tokens
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from mmllm.errors import ConfigError, InputError

CHOICES = ("skip", "small", "big")
"""What a layer can do with a token; a route holds their numbers."""
SKIP, SMALL, BIG = range(3)


def all_routes(layers: int) -> Tensor:
    """int64, R L: every route."""
    return torch.tensor(list(product(range(len(CHOICES)), repeat=layers)))


def route_of(names: Sequence[str], layers: int) -> list[int]:
    """The route that names describe: one for each layer, or one for all.

    Raises:
        ConfigError: for an unknown name, or another number of them.
    """
    if unknown := [name for name in names if name not in CHOICES]:
        raise ConfigError(f"route: {', '.join(unknown)}: a layer can do {', '.join(CHOICES)}")
    if len(names) not in (1, layers):
        raise ConfigError(f"route has {len(names)} entries: give one, or one for each of {layers} layers")
    return [CHOICES.index(name) for name in names] * (layers if len(names) == 1 else 1)


def widths_of(routes: Tensor, small: int, big: int) -> Tensor:
    """int64, R: the sum of the widths that each route (int64, R L) goes through."""
    return torch.tensor([0, small, big], device=routes.device)[routes].sum(dim=-1)


def best_routes(losses: Tensor, routes: Tensor, most_big: int) -> Tensor:
    """int64, T: the oracle's number of the route with the least loss of each token, under a budget of big parts.

    Args:
        losses: T R.
        routes: int64, R L.
        most_big: how many big parts a route may have.

    Raises:
        InputError: if no route keeps the budget.
    """
    allowed = (routes == BIG).sum(dim=-1) <= most_big
    if not bool(allowed.any()):
        raise InputError(f"no route has at most {most_big} big parts")
    return losses.masked_fill(~allowed, float("inf")).argmin(dim=1)
