"""Projectors and resamplers: from the encoder's width to the LLM's.

B videos, T frames, N tokens of a frame before and M behind, C encoder width, D LLM width, W texts
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from mmllm.interfaces.encoder import Grid
from mmllm.interfaces.part import Part
from mmllm.tokens import VisualTokens


class VisualTokenizer(Part, nn.Module):
    """Projects encoder features to the LLM's width: token by token, or as a resampler to 1D tokens."""

    needs_frame_size: ClassVar[bool] = False
    """Whether it reads `VisualTokens.frame_size`."""

    affine: ClassVar[bool] = False
    """Whether it is one affine map of each token. Averages of tokens can then be taken before it."""

    question_comes_last: ClassVar[bool] = False
    """Whether one that reads the question has an output before it does so, `unasked`."""

    @property
    def words(self) -> Sequence[str]:
        """Texts whose embeddings by the LLM it starts from; none by default."""
        return ()

    def start_from(self, embeddings: Tensor) -> None:
        """Sets what follows from the LLM's embeddings of its `words`, float, W D; called once, before training."""

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """Features B T N C to B T M D."""
        raise NotImplementedError

    def unasked(self, tokens: VisualTokens) -> VisualTokens:
        """The same before the question changes anything; see `question_comes_last`."""
        return self(tokens)

    def token_count(self, tokens_per_frame: int) -> int:
        """M: tokens of a frame in its output."""
        return tokens_per_frame

    def grid_after(self, grid: Grid) -> Grid:
        """The patch grid of its output; None for 1D tokens."""
        return grid
