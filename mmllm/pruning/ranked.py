"""Base of reducers that rank the tokens of each frame and keep the best; a subclass writes only its ranking.

B videos, T frames, N tokens of a frame, K kept
"""

from __future__ import annotations

from torch import Tensor

from mmllm.interfaces import Grid, TokenReducer
from mmllm.pruning.budget import Budget
from mmllm.pruning.selection import top_counted
from mmllm.tokens import VisualTokens


class BudgetReducer(TokenReducer):
    """Keeps the highest-ranked tokens of every frame, as many as its configuration, a `Budget`, allows."""

    config: Budget

    def __init__(self, config: Budget) -> None:
        super().__init__()
        self.config = config

    def ranking(self, tokens: VisualTokens) -> Tensor:
        """float32, B T N: the score by which tokens are ranked, the best highest."""
        raise NotImplementedError

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """B T K of B T N tokens, in raster order; a smaller budget keeps a subset of what a larger one keeps.

        Raises:
            InputError: if a score is not finite, or the budget exceeds the tokens of a frame.
        """
        kept, mask = top_counted(self.ranking(tokens), self.config.per_frame(tokens.mask), tokens.mask)
        return tokens.take(kept, mask)

    def kept_tokens(self, tokens_per_frame: int, frames: int) -> int:
        """The most tokens that remain of a whole video."""
        return self.config.upper_bound(tokens_per_frame, frames)

    def counts_by_shape(self, tokens_per_frame: int, frames: int, grid: Grid) -> list[int]:
        """The budget of each frame."""
        return self.config.of_each(tokens_per_frame, frames)
