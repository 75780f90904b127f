"""Qwen2.5-VL: as Qwen2-VL, but the time of a position grows with the seconds between two temporal grids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from mmllm.hosting.mrope_family import MropeFamily
from mmllm.registry import register


@dataclass(frozen=True, kw_only=True)
class Qwen25VLHosting:
    """Nothing to set."""


@register("host", "qwen2.5-vl", config=Qwen25VLHosting)
class Qwen25VL(MropeFamily):
    """Qwen2.5-VL."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen2_5_vl",)

    def time_step(self, config: Any, inputs: Mapping[str, Any], video: int) -> float:
        """Steps a second, times the seconds between two temporal grids; 1 s where the inputs do not say it."""
        seconds = inputs.get("second_per_grid_ts")
        return config.vision_config.tokens_per_second * (1.0 if seconds is None else float(seconds[video]))
