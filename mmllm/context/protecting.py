"""Kinds of positions that a policy never removes: text in which a video LLM reads *when*.

B rows, G key heads, K keys
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmllm.errors import ConfigError
from mmllm.llm.kinds import PositionKind

PROTECTABLE = {
    "system": PositionKind.SYSTEM,
    "time": PositionKind.TIME,
    "visual": PositionKind.VISUAL,
    "text": PositionKind.TEXT,
    "question": PositionKind.QUESTION,
}
"""Name in a setting -> kind. `none` protects nothing."""
NOTHING = "none"


def require_kinds(names: tuple[str, ...], where: str) -> None:
    """Refuses names of kinds that do not exist.

    Raises:
        ConfigError: naming what is allowed.
    """
    if names == (NOTHING,):
        return
    wrong = [name for name in names if name not in PROTECTABLE]
    if wrong or not names:
        allowed = f"{NOTHING}, or of {', '.join(PROTECTABLE)}, joined by +"
        raise ConfigError(f"{where} = {'+'.join(names)!r}: must be {allowed}")


def is_protected(kind: Tensor, names: tuple[str, ...]) -> Tensor:
    """bool, like `kind` (int64, B G K): True at positions of the named kinds."""
    kinds = [int(PROTECTABLE[name]) for name in names if name != NOTHING]
    return torch.isin(kind, torch.tensor(kinds, dtype=torch.long, device=kind.device))
