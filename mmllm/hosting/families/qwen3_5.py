"""Qwen3.5 and its mixture of experts: prompts as Qwen3-VL's, in an LLM with linear and full attention.

The linear layers read a shortened prompt as a row in which nothing ever stood between the tokens that remain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mmllm.hosting.mrope_family import TimedGrids
from mmllm.registry import register


@dataclass(frozen=True, kw_only=True)
class Qwen35Hosting:
    """Nothing to set."""


@register("host", "qwen3.5", config=Qwen35Hosting)
class Qwen35(TimedGrids):
    """Qwen3.5."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen3_5", "qwen3_5_moe")
