"""How many keys a policy keeps: a count, or a share of the prompt.

B rows, G key heads, K keys
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmllm.fields import require

Budget = float
"""Above 0 and at most 1 it is a share of the prompt; from 2 on a count of keys. A count of 1 cannot be written."""

_ROUNDING = 1e-9
"""So much below a whole number still counts as it: 0.29 * 100 is 28.999999999999996."""


def require_budget(config: object, field: str, *, or_none: bool = False) -> None:
    """Refuses a budget that is neither a count nor a share.

    Args:
        config: with the budget.
        field: its name.
        or_none: whether 0 is allowed, for no key.

    Raises:
        ConfigError: naming the field, its value and what is allowed.
    """
    value = getattr(config, field)
    allowed = "a share of the prompt above 0 and at most 1, such as 0.1, or a whole count from 2 on, such as 64"
    is_count = math.isfinite(value) and value > 1 and value == int(value)
    fits = 0 < value <= 1 or is_count or (or_none and value == 0)
    require(fits, config, field, f"{allowed}; or 0 for none" if or_none else allowed)


def count_of(budget: Budget, real: int, *, least: int = 1) -> int:
    """The count that a budget is for so many real keys: of a share the whole number below it, but at least `least`."""
    return int(budget) if budget > 1 else max(least, math.floor(budget * real + _ROUNDING))


def counts_of(budget: Budget, free: Tensor, *, least: int = 1) -> Tensor:
    """int64, B: the count of a budget for each row.

    Args:
        budget: the budget.
        free: bool, B G K. The real keys that it is about, of a prompt.
        least: the least count that a share can be.
    """
    real = free[:, 0].sum(-1)
    return torch.tensor([count_of(budget, int(count), least=least) for count in real], device=free.device)
