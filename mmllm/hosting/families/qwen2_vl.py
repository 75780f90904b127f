"""Qwen2-VL: one block of tokens a video, without text between its frames; a temporal grid is one step of time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mmllm.hosting.mrope_family import MropeFamily
from mmllm.registry import register


@dataclass(frozen=True, kw_only=True)
class Qwen2VLHosting:
    """Nothing to set."""


@register("host", "qwen2-vl", config=Qwen2VLHosting)
class Qwen2VL(MropeFamily):
    """Qwen2-VL."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen2_vl",)
