"""LLaVA-OneVision: videos as blocks of pooled frames with one newline behind; images in tiles with newlines.

The videos of a prompt are one tensor, so its rows have equally many frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from mmllm.hosting.anyres import tiled_image
from mmllm.hosting.family import Container, HostFamily
from mmllm.hosting.frames import side_by_side
from mmllm.hosting.media import Medium, Source
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
