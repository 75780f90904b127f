"""Video-LLaVA: a tower for images and one for videos. Frames of videos have their CLS token, images have not.

The videos of a prompt are one tensor, so its rows have equally many frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmllm.hosting.family import Container, HostFamily
from mmllm.hosting.frames import side_by_side, with_cls
from mmllm.hosting.media import Medium, Source
from mmllm.hosting.scores import Tower
from mmllm.hosting.towers import tower_of
from mmllm.registry import register


@dataclass(frozen=True, kw_only=True)
class VideoLlavaHosting:
    """Nothing to set."""


@register("host", "video-llava", config=VideoLlavaHosting)
class VideoLlava(HostFamily):
    """Video-LLaVA."""

    model_types: ClassVar[tuple[str, ...]] = ("video_llava",)
    container: ClassVar[Container | Mapping[Source, Container]] = "flat"

    def described(self, config: Any, inputs: Mapping[str, Any]) -> list[Medium]:
        """The CLS token of each frame of a video is always kept; that of an image only where it was not left out."""
        tokens = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
        media = []
        images = inputs.get("pixel_values")  # images, 3, height, width
        if images is not None:
            image = side_by_side("image", 1, tokens)
            full = config.vision_feature_select_strategy == "full"
            media += [with_cls(image) if full else image] * len(images)
        videos = inputs.get("pixel_values_videos")  # videos, T, 3, height, width
        if videos is not None:
            media += [with_cls(side_by_side("video", videos.shape[1], tokens))] * len(videos)
        return media

    def towers(self, model: Any) -> dict[Source, Tower]:
        """A tower for images and one for videos, both with a class token."""
        towers: dict[Source, Tower] = {}
        modules: dict[Source, Any] = {"image": model.base_model.image_tower, "video": model.base_model.video_tower}
        for source, module in modules.items():
            tower = tower_of(module, layer=model.config.vision_feature_layer, cls=True)
            if tower is not None:
                towers[source] = tower
        return towers

    def folded(self, model: Any, source: Source, calls: list[Tensor], inputs: Mapping[str, Any]) -> Tensor:
        """float32, V: as they are; a class token that was not left out has 0."""
        patches = torch.cat(calls)[:, 1:]
        if source == "image" and model.config.vision_feature_select_strategy == "default":
            return patches.flatten()
        return torch.nn.functional.pad(patches, (1, 0)).flatten()
