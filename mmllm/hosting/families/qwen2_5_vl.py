"""Qwen2.5-VL: as Qwen2-VL, but the time of a position grows with the seconds between two temporal grids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from mmllm.hosting.media import Source
from mmllm.hosting.mrope_family import GRIDS, MropeFamily
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

    def full_blocks(self, config: Any) -> list[int] | None:
        """All other blocks attend inside windows."""
        return list(config.vision_config.fullatt_block_indexes)

    def folded(self, model: Any, source: Source, calls: list[Tensor], inputs: Mapping[str, Any]) -> Tensor:
        """float32, V: the tower holds tokens window by window, so they are put back in order."""
        from transformers.vision_utils import get_vision_window_index

        vision, grids = model.config.vision_config, inputs[GRIDS[source]]
        tokens = super().folded(model, source, calls, inputs)
        windows, _ = get_vision_window_index(
            grids,
            spatial_merge_size=vision.spatial_merge_size,
            window_size=vision.window_size,
            patch_size=vision.patch_size,
        )
        return tokens[windows.argsort().to(tokens.device)]
