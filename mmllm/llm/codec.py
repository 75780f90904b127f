"""What is asked of a codec: keys and values of a kept prefix as tensors of a file, and back.

G key heads, P positions, D head width
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from mmllm.interfaces import Part

Role = Literal["keys", "values"]


class CacheCodec(Part):
    """How keys and values of a kept prefix are stored."""

    def encode(self, states: Tensor, layer: int, role: Role) -> dict[str, Tensor]:
        """Tensors by name; the empty name for a single one.

        Args:
            states: float, G P D.
            layer: number of the LLM's layer.
            role: whether these are keys or values.
        """
        raise NotImplementedError

    def decode(self, stored: Mapping[str, Tensor], shape: tuple[int, int, int], layer: int, role: Role) -> Tensor:
        """The states G P D that a file holds.

        Args:
            stored: what `encode` returned.
            shape: G P D.
            layer: number of the LLM's layer.
            role: whether these are keys or values.

        Raises:
            CheckpointError: if tensors are missing, or hold something else.
        """
        raise NotImplementedError
