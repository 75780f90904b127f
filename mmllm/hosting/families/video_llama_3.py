"""VideoLLaMA3: patches in grids; its processor leaves out tokens of a video that hardly differ from the frame before.

`video_compression_mask` says which. Here it is applied to the features, so each remaining token keeps the place in its
frame, and beams work, which crash in transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmllm.hosting.family import HostFamily
from mmllm.hosting.media import Medium, Source
from mmllm.hosting.scores import Tower
from mmllm.hosting.towers import tower_of
from mmllm.registry import register


@dataclass(frozen=True, kw_only=True)
class VideoLlama3Hosting:
    """Nothing to set."""


@register("host", "video-llama-3", config=VideoLlama3Hosting)
class VideoLlama3(HostFamily):
    """VideoLLaMA3."""

    model_types: ClassVar[tuple[str, ...]] = ("video_llama_3",)

    def described(self, config: Any, inputs: Mapping[str, Any]) -> list[Medium]:
        """A medium for each grid, with the tokens that the processor left."""
        media = []
        sources: tuple[Source, ...] = ("image", "video")
        for source in sources:
            grids, merges = inputs.get(f"{source}_grid_thw"), inputs.get(f"{source}_merge_sizes")
            if grids is None or merges is None:
                continue
            grid_list = [(t, h // m, w // m) for (t, h, w), m in zip(grids.tolist(), merges.tolist(), strict=True)]
            masks = _masks(inputs.get("video_compression_mask") if source == "video" else None, grid_list)
            media += [_medium(source, grid, mask) for grid, mask in zip(grid_list, masks, strict=True)]
        return media

    def encode(self, model: Any, inputs: Mapping[str, Any]) -> dict[Source, Any]:
        """Their features, those of videos without the tokens that the processor left out."""
        outputs = super().encode(model, inputs)
        mask = inputs.get("video_compression_mask")
        if "video" in outputs and mask is not None:
            features = outputs["video"].pooler_output
            masks = mask.split([len(part) for part in features])
            outputs["video"].pooler_output = [
                part[own.to(part.device)] for part, own in zip(features, masks, strict=True)
            ]
        return outputs

    def towers(self, model: Any) -> dict[Source, Tower]:
        """One tower without a class token, for both feature methods."""
        tower = tower_of(model.base_model.vision_model)
        return {} if tower is None else {"image": tower, "video": tower}

    def folded(self, model: Any, source: Source, calls: list[Tensor], inputs: Mapping[str, Any]) -> Tensor:
        """float32, V: resized as the features are, without the tokens that the processor left out."""
        patches = torch.cat([call.flatten() for call in calls]).unsqueeze(-1)
        grids, merges = inputs[f"{source}_grid_thw"], inputs[f"{source}_merge_sizes"]
        tokens = model.base_model.vision_model.pixel_unshuffle(patches, grids, merges).squeeze(-1)
        mask = inputs.get("video_compression_mask") if source == "video" else None
        return tokens if mask is None else tokens[mask.to(tokens.device)]


def _masks(mask: Tensor | None, grids: list[tuple[int, int, int]]) -> list[Tensor]:
    """bool, one for each medium of T rows columns tokens: which of them remain."""
    counts = [t * rows * columns for t, rows, columns in grids]
    if mask is None:
        return [torch.ones(count, dtype=torch.bool) for count in counts]
    return list(mask.cpu().split(counts))


def _medium(source: Source, grid: tuple[int, int, int], mask: Tensor) -> Medium:
    frames, rows, columns = grid
    left = mask.nonzero().flatten()
    frame, place = left // (rows * columns), left % (rows * columns)
    return Medium(modality=source, frames=frames, count=len(left), grid=(rows, columns), frame_of=frame, place_of=place)
