"""InternVL 3 and 3.5: frames of videos are images, with their number as text before each; 2 x 2 patches a token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor

from mmllm.hosting.family import Container, HostFamily
from mmllm.hosting.frames import check_count, grouped, side_by_side
from mmllm.hosting.media import Medium, Source
from mmllm.hosting.scores import Tower
from mmllm.hosting.towers import tower_of
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

    def towers(self, model: Any) -> dict[Source, Tower]:
        """A tower with a class token."""
        tower = tower_of(model.base_model.vision_tower, layer=model.config.vision_feature_layer, cls=True)
        return {} if tower is None else {"image": tower}

    def folded(self, model: Any, source: Source, calls: list[Tensor], inputs: Mapping[str, Any]) -> Tensor:
        """float32, V: the mean of the patches that their pixel shuffle puts into a token."""
        vision = model.config.vision_config
        rows, columns = (p // s for p, s in zip(vision.image_size, vision.patch_size, strict=True))
        maps = rearrange(torch.cat(calls)[:, 1:], "f (h w) -> f h w 1", h=rows, w=columns)
        shuffled = model.base_model.pixel_shuffle(maps, scale_factor=model.config.downsample_ratio)
        return shuffled.mean(-1).flatten()
