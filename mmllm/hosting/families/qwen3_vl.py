"""Qwen3-VL and its mixture of experts: the time as text before each temporal grid, and features for early layers.

Each temporal grid of a video is a block of its own among the positions. What the tower's middle blocks saw comes back
in the LLM's first layers: `deepstack_features`, a list for each of them. They are dropped and merged with the tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mmllm.hosting.mrope_family import TimedGrids
from mmllm.registry import register


@dataclass(frozen=True, kw_only=True)
class Qwen3VLHosting:
    """Nothing to set."""


@register("host", "qwen3-vl", config=Qwen3VLHosting)
class Qwen3VL(TimedGrids):
    """Qwen3-VL."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen3_vl", "qwen3_vl_moe")
