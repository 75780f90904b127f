"""InternVL 3 and 3.5: frames of videos are images, with their number as text before each; 2 x 2 patches make a token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from mmllm.hosting.family import Container, HostFamily
from mmllm.hosting.frames import check_count, grouped, side_by_side
from mmllm.hosting.media import Medium, Source
from mmllm.registry import register


@dataclass(frozen=True, kw_only=True)
class InternVLHosting:
    """Nothing to set."""


@register("host", "internvl", config=InternVLHosting)
class InternVL(HostFamily):
    """InternVL 3 and 3.5."""

    model_types: ClassVar[tuple[str, ...]] = ("internvl",)
    placeholder: ClassVar[Mapping[Source, str]] = {"image": "image_token_id"}
    container: ClassVar[Container | Mapping[Source, Container]] = "flat"

    def described(self, config: Any, inputs: Mapping[str, Any]) -> list[Medium]:
        """Tiles without text between them are one image, frames close to each other one video."""
        vision = config.vision_config
        sides = [
            int(p // s * config.downsample_ratio) for p, s in zip(vision.image_size, vision.patch_size, strict=True)
        ]
        tokens = sides[0] * sides[1]
        groups = grouped(inputs["input_ids"], config.image_token_id, tokens)
        check_count(groups, len(inputs["pixel_values"]) if "pixel_values" in inputs else 0)
        return [side_by_side(modality, frames, tokens, source="image") for modality, frames in groups]
