"""LLaVA-1.5: images, one after the other; frames of a video are images. With a Pixtral tower, images of any shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmllm.hosting.family import HostFamily
from mmllm.hosting.frames import check_count, grouped, side_by_side, with_cls
from mmllm.hosting.media import Medium, Source
from mmllm.hosting.scores import Tower
from mmllm.hosting.towers import tower_of
from mmllm.registry import register


@dataclass(frozen=True, kw_only=True)
class LlavaHosting:
    """Nothing to set."""


@register("host", "llava", config=LlavaHosting)
class Llava(HostFamily):
    """LLaVA-1.5."""

    model_types: ClassVar[tuple[str, ...]] = ("llava",)
    placeholder: ClassVar[Mapping[Source, str]] = {"image": "image_token_id"}

    def described(self, config: Any, inputs: Mapping[str, Any]) -> list[Medium]:
        """Images close to each other are frames of a video. A CLS token that was not left out is always kept."""
        vision, sizes = config.vision_config, inputs.get("image_sizes")
        if sizes is not None:  # Pixtral: a row of patches for each line, with text between the lines
            grids = [(height // vision.patch_size, width // vision.patch_size) for height, width in sizes.tolist()]
            return [Medium(modality="image", frames=1, count=h * w, grid=(h, w)) for h, w in grids]
        tokens = (vision.image_size // vision.patch_size) ** 2
        cls = config.vision_feature_select_strategy == "full" and vision.model_type.startswith("clip")
        groups = grouped(inputs["input_ids"], config.image_token_id, tokens + cls)
        check_count(groups, len(inputs["pixel_values"]) if "pixel_values" in inputs else 0)
        media = [side_by_side(modality, frames, tokens, source="image") for modality, frames in groups]
        return [with_cls(medium) for medium in media] if cls else media

    def towers(self, model: Any) -> dict[Source, Tower]:
        """A tower with a class token, if it is CLIP's; none that can be noted, if images have any shape (Pixtral)."""
        config, kind = model.config, model.config.vision_config.model_type
        if not kind.startswith(("clip", "siglip")):
            return {}
        layer = config.vision_feature_layer
        tower = tower_of(model.base_model.vision_tower, layer=layer, cls=kind.startswith("clip"))
        return {} if tower is None else {"image": tower}

    def folded(self, model: Any, source: Source, calls: list[Tensor], inputs: Mapping[str, Any]) -> Tensor:
        """float32, V: as they are; a class token that was not left out has 0."""
        config, maps = model.config, torch.cat(calls)
        if not config.vision_config.model_type.startswith("clip"):
            return maps.flatten()
        patches = maps[:, 1:]
        if config.vision_feature_select_strategy == "default":
            return patches.flatten()
        return torch.nn.functional.pad(patches, (1, 0)).flatten()
