"""Keys and values as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from mmllm.errors import CheckpointError
from mmllm.llm.codec import CacheCodec, Role
from mmllm.registry import register


@dataclass(frozen=True, kw_only=True)
class PlainConfig:
    """Nothing to choose."""


@register("codec", "plain", config=PlainConfig)
class Plain(CacheCodec):
    """Keys and values as they are."""

    def __init__(self, config: PlainConfig) -> None:
        self.config = config

    def encode(self, states: Tensor, layer: int, role: Role) -> dict[str, Tensor]:
        """The states themselves."""
        return {"": states}

    def decode(self, stored: Mapping[str, Tensor], shape: tuple[int, int, int], layer: int, role: Role) -> Tensor:
        """The states themselves."""
        if stored.keys() != {""} or stored[""].shape != shape or not stored[""].is_floating_point():
            raise CheckpointError(f"the {role} of layer {layer} must be one tensor of {shape}")
        return stored[""]
