"""Qwen2.5-VL: as Qwen2-VL, but the time of a position grows with the seconds between two temporal grids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmllm.hosting.media import Source
from mmllm.hosting.mrope_family import GRIDS, MropeFamily
from mmllm.hosting.positions import PositionRule, mrope, with_text_behind_media
from mmllm.hosting.times import with_time_rows
from mmllm.registry import register


@dataclass(frozen=True, kw_only=True)
class Qwen25VLHosting:
    """Nothing to set."""


@register("host", "qwen2.5-vl", config=Qwen25VLHosting)
class Qwen25VL(MropeFamily):
    """Qwen2.5-VL."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen2_5_vl",)
    grounding: ClassVar[str] = (
        "{} Answer with the start and the end in seconds, in the form: 3.2s - 12.5s. "
        "If it never happens, answer: It does not happen."
    )
    answer_form: ClassVar[str] = "{start}s - {end}s"

    times_in_positions: ClassVar[bool] = True

    def positions(self, model: Any, inputs: Mapping[str, Any], rule: PositionRule) -> Tensor:
        """int64, 4 B N. With `grid_times_s` (for each video the seconds of its temporal grids) uneven frames count."""
        times_s = inputs.get("grid_times_s")
        if times_s is None:
            return mrope(model, inputs, rule)
        whole = mrope(model, inputs, "transformers")
        types, mask = inputs["mm_token_type_ids"], inputs["attention_mask"]
        rate = model.config.vision_config.tokens_per_second
        rows = with_time_rows(whole[1:], types, mask, times_s, rate)
        if rule == "trained":
            rows = with_text_behind_media(rows, types, mask)
        return torch.cat([whole[:1], rows])

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
