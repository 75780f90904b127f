"""The first tokens of each frame: for 1D tokens that are ordered from coarse to fine, as FlexTok's and MQT's are.

B videos, T frames, N tokens of a frame, K kept
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mmllm.errors import InputError
from mmllm.interfaces import Origin
from mmllm.pruning.budget import Budget
from mmllm.pruning.ranked import BudgetReducer
from mmllm.registry import register
from mmllm.tokens import VisualTokens


@dataclass(frozen=True, kw_only=True)
class PrefixConfig(Budget):
    """A budget."""


@register("reducer", "prefix", config=PrefixConfig)
class PrefixReducer(BudgetReducer):
    """The first tokens of each frame, for ordered 1D tokens."""

    origin = Origin(
        original="ours",
        compared_with="properties",
        equal="what an encoder with fewer tokens gives",
    )
    layout = "line"

    @property
    def by_frame(self) -> bool:
        """Whether the budget is one of each frame, not of the whole video."""
        return self.config.total is None

    def ranking(self, tokens: VisualTokens) -> Tensor:
        """float32, B T N: the earlier a token, the higher it ranks.

        Raises:
            InputError: for the patches of a grid, whose first rows are no summary of the picture.
        """
        if tokens.grid is not None:
            raise InputError(
                f"prefix keeps the first of ordered 1D tokens; on a {tokens.grid[0]}x{tokens.grid[1]} grid these would "
                "be its upper rows: choose another reducer, or an encoder such as flextok"
            )
        return -tokens.index.float()

    def explain(self, tokens: VisualTokens) -> None:
        """Nothing: the choice does not depend on the picture."""
