"""LLaVA-OneVision: videos as blocks of pooled frames with one newline behind; images in tiles with newlines.

The videos of a prompt are one tensor, so its rows have equally many frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor

from mmllm.hosting.anyres import packed, tiled_image
from mmllm.hosting.family import Container, HostFamily
from mmllm.hosting.frames import side_by_side
from mmllm.hosting.media import Medium, Source
from mmllm.hosting.scores import Tower
from mmllm.hosting.towers import tower_of
from mmllm.registry import register


@dataclass(frozen=True, kw_only=True)
class LlavaOnevisionHosting:
    """Nothing to set."""


@register("host", "llava-onevision", config=LlavaOnevisionHosting)
class LlavaOnevision(HostFamily):
    """LLaVA-OneVision."""

    model_types: ClassVar[tuple[str, ...]] = ("llava_onevision",)
    container: ClassVar[Container | Mapping[Source, Container]] = {"image": "list", "video": "flat"}

    def described(self, config: Any, inputs: Mapping[str, Any]) -> list[Medium]:
        """Images are cut into tiles where they are alone in their row, or `batch_num_images` does not say more."""
        side = config.vision_config.image_size // config.vision_config.patch_size
        media = []
        sizes = inputs.get("image_sizes")
        if sizes is not None and inputs.get("pixel_values") is not None:
            numbers = inputs.get("batch_num_images")
            alone = [True] * len(sizes) if numbers is None else [n == 1 for n in numbers.tolist() for _ in range(n)]
            most = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
            for size, in_tiles in zip(sizes.tolist(), alone, strict=True):
                whole = side_by_side("image", 1, side * side, extra=1)
                media.append(tiled_image(config, size, most_tiles=most) if in_tiles else whole)
        videos = inputs.get("pixel_values_videos")  # videos, T, 3, height, width
        if videos is not None:
            media += [side_by_side("video", videos.shape[1], (-(-side // 2)) ** 2, extra=1)] * len(videos)
        return media

    def towers(self, model: Any) -> dict[Source, Tower]:
        """One tower without a class token, for both feature methods."""
        if model.config.vision_feature_select_strategy != "full":
            return {}
        tower = tower_of(model.base_model.vision_tower, layer=model.config.vision_feature_layer)
        return {} if tower is None else {"image": tower, "video": tower}

    def folded(self, model: Any, source: Source, calls: list[Tensor], inputs: Mapping[str, Any]) -> Tensor:
        """float32, V: resized or laid out as the features are; 0 at newlines."""
        maps, config = torch.cat(calls), model.config
        if source == "video":
            pooled = model.base_model.apply_pooling(maps.unsqueeze(-1)).squeeze(-1)  # frames of all videos, n
            videos = rearrange(pooled, "(v t) n -> v (t n)", v=len(inputs["pixel_values_videos"]))
            return torch.nn.functional.pad(videos, (0, 1)).flatten()
        from transformers.models.llava_onevision.modeling_llava_onevision import image_size_to_num_patches

        sizes, numbers = inputs["image_sizes"], inputs.get("batch_num_images")
        alone = [True] * len(sizes) if numbers is None else [n == 1 for n in numbers.tolist() for _ in range(n)]
        pixels = config.vision_config.image_size
        tiles = [
            image_size_to_num_patches(size, config.image_grid_pinpoints, pixels) if in_tiles else 1
            for size, in_tiles in zip(sizes, alone, strict=True)
        ]
        return packed(model, maps, tiles, inputs, vision_aspect_ratio=config.vision_aspect_ratio)
