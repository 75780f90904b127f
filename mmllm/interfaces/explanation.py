"""What a reducer shows of its decision.

B videos or rows, T frames, N tokens of a frame, P positions of the LLM's row
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """The values by which a reducer decided, to be shown as a heat map."""

    name: str
    values: Tensor
    """float32. B T N, for the input tokens of a reducer; for one inside the LLM B P, for the positions of a prompt. NaN
    where the reducer had nothing to decide."""
