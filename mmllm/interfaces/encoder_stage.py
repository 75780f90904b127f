"""Reducers inside the blocks of a vision transformer.

F frames run at once, N tokens of a frame, C encoder width, H heads, D width of a head
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from mmllm.interfaces.encoder import Encoder
from mmllm.interfaces.reducer import TokenReducer


class InsideBlocks(Protocol):
    """Methods that an encoder calls inside its blocks, between attention and MLP. `state` is for the methods only."""

    def start(self, hidden: Tensor, blocks: int) -> Any:
        """State before the first of `blocks` blocks, for hidden states F N C with the class token first."""

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, state: Any) -> tuple[Tensor, Tensor]:
        """The attention's output F H N D, from arguments F H N D, and the class token's mean attention F N."""

    def reduce(self, block: int, hidden: Tensor, row: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Fewer hidden states, of those after the attention's residual connection, and the new state."""

    def finish(self, hidden: Tensor, state: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Patch features F N C in raster order, the raster position of each (F N), and how many patches each has (F N).

        A token of size 0 was removed and will be masked.
        """


class EncoderStage(TokenReducer, InsideBlocks):
    """A reducer inside the blocks of a vision transformer. It has to write the four methods of `InsideBlocks`."""

    def prepare(self, encoder: Encoder) -> None:
        """Prepares for an encoder; called once, when a model is built."""

    def losses(self) -> dict[str, Tensor]:
        """Losses that are added to a training step's loss, by name."""
        return {}
