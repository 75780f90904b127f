"""LLaVA-NeXT-Video: videos as blocks of pooled frames; images in tiles, with a newline behind each row of tokens.

The videos of a prompt are one tensor, so its rows have equally many frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmllm.hosting.anyres import next_images, next_towers, tiled_image
from mmllm.hosting.family import Container, HostFamily
from mmllm.hosting.frames import side_by_side
from mmllm.hosting.media import Medium, Source
from mmllm.hosting.scores import Tower
from mmllm.registry import register


@dataclass(frozen=True, kw_only=True)
class LlavaNextVideoHosting:
    """Nothing to set."""


@register("host", "llava-next-video", config=LlavaNextVideoHosting)
class LlavaNextVideo(HostFamily):
    """LLaVA-NeXT-Video."""

    model_types: ClassVar[tuple[str, ...]] = ("llava_next_video",)
    container: ClassVar[Container | Mapping[Source, Container]] = {"image": "list", "video": "flat"}

    def described(self, config: Any, inputs: Mapping[str, Any]) -> list[Medium]:
        """An image for each of `image_sizes`, and videos of pooled frames."""
        media = []
        if inputs.get("pixel_values") is not None:
            media += [tiled_image(config, size) for size in inputs["image_sizes"].tolist()]
        videos = inputs.get("pixel_values_videos")  # videos, T, 3, height, width
        if videos is not None:
            side = config.vision_config.image_size // config.vision_config.patch_size // config.spatial_pool_stride
            media += [side_by_side("video", videos.shape[1], side * side)] * len(videos)
        return media

    def towers(self, model: Any) -> dict[Source, Tower]:
        """A tower with a class token, for both feature methods; not for videos whose pooling has weights."""
        towers = next_towers(model)
        if "image" in towers and model.config.spatial_pool_mode != "conv":
            towers["video"] = towers["image"]
        return towers

    def folded(self, model: Any, source: Source, calls: list[Tensor], inputs: Mapping[str, Any]) -> Tensor:
        """float32, V: pooled or laid out as the features are; 0 at newlines."""
        maps = torch.cat(calls)[:, 1:]
        if source == "image":
            return next_images(model, maps, inputs)
        return model.base_model.vision_resampler(maps.unsqueeze(-1)).flatten()
