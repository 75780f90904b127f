"""LLaVA-NeXT: images in tiles, with a newline behind each row of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmllm.hosting.anyres import next_images, next_towers, tiled_image
from mmllm.hosting.family import HostFamily
from mmllm.hosting.media import Medium, Source
from mmllm.hosting.scores import Tower
from mmllm.registry import register


@dataclass(frozen=True, kw_only=True)
class LlavaNextHosting:
    """Nothing to set."""


@register("host", "llava-next", config=LlavaNextHosting)
class LlavaNext(HostFamily):
    """LLaVA-NeXT."""

    model_types: ClassVar[tuple[str, ...]] = ("llava_next",)
    placeholder: ClassVar[Mapping[Source, str]] = {"image": "image_token_id"}

    def described(self, config: Any, inputs: Mapping[str, Any]) -> list[Medium]:
        """An image for each of `image_sizes`."""
        if inputs.get("pixel_values") is None:
            return []
        return [tiled_image(config, size) for size in inputs["image_sizes"].tolist()]

    def towers(self, model: Any) -> dict[Source, Tower]:
        """A tower with a class token, if it is CLIP's and left out of the features."""
        return next_towers(model)

    def folded(self, model: Any, source: Source, calls: list[Tensor], inputs: Mapping[str, Any]) -> Tensor:
        """float32, V: laid out as the features are; 0 at newlines."""
        return next_images(model, torch.cat(calls)[:, 1:], inputs)
