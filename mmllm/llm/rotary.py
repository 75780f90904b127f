"""Turns rotated keys to other positions, with an LLM's own rotary embedding.

B rows, G key heads, K keys, N positions, D head width
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from einops import rearrange
from torch import Tensor, nn

from mmllm.errors import ConfigError

_CHANGING = ("dynamic", "longrope")
"""Kinds of rotary embeddings whose frequencies depend on the length of the text."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rotary:
    """The rotary embedding of a decoder."""

    embed: Callable[..., tuple[Tensor, Tensor]]
    """Of hidden states and positions (int64, B N): cosines and sines, B N D, times `scaling`."""
    apply: Callable[..., tuple[Tensor, Tensor]]
    """The family's own function that rotates queries and keys."""
    scaling: float
    """Factor that the embedding gives to cosines and sines."""

    @classmethod
    def of(cls, decoder: nn.Module) -> Self:
        """The rotary embedding of a decoder of transformers.

        Raises:
            ConfigError: if keys cannot be turned in this decoder; the message says why.
        """
        config: Any = decoder.config
        parameters: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
        kind = parameters.get("rope_type", "default")
        if kind in _CHANGING:
            raise ConfigError(
                f"no key can be turned: the frequencies of rotary embedding {kind!r} change with the length"
            )
        if "mrope_section" in parameters or "mrope_section" in (getattr(config, "rope_scaling", None) or {}):
            raise ConfigError("no key can be turned: a multi-axis rotary embedding gives a position several numbers")
        embedding: Any = getattr(decoder, "rotary_emb", None)
        layers: Any = getattr(decoder, "layers", None)
        module = None if not layers else sys.modules[type(layers[0].self_attn).__module__]
        apply = getattr(module, "apply_rotary_pos_emb", None)
        if embedding is None or apply is None:
            name = type(decoder).__name__
            raise ConfigError(f"no key can be turned: {name} has no rotary embedding under the usual names")
        return cls(embed=embedding.__call__, apply=apply, scaling=float(getattr(embedding, "attention_scaling", 1.0)))

    def turned(self, keys: Tensor, by: Tensor) -> Tensor:
        """Keys (B G K D), rotated further by so many positions (int64, B G K or B 1 K; may be negative)."""
        rows, heads, count, _ = keys.shape
        by = by.expand(rows, heads, count).reshape(rows * heads, count)
        flat = rearrange(keys, "b g k d -> (b g) 1 k d").float()
        cos, sin = (part.float() / self.scaling for part in self.embed(flat, by.abs()))
        sin = torch.where((by < 0).unsqueeze(-1), -sin, sin)
        turned = self.apply(flat, flat, cos, sin)[1]
        return rearrange(turned, "(b g) 1 k d -> b g k d", b=rows).to(keys.dtype)
