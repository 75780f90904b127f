"""PerceptionLM: tiles of an image and frames of a video through one method, without text between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from mmllm.hosting.family import Container, HostFamily
from mmllm.hosting.frames import side_by_side, tokens_of_each
from mmllm.hosting.media import Medium, Source
from mmllm.registry import register


@dataclass(frozen=True, kw_only=True)
class PerceptionLMHosting:
    """Nothing to set."""


@register("host", "perception-lm", config=PerceptionLMHosting)
class PerceptionLM(HostFamily):
    """PerceptionLM."""

    model_types: ClassVar[tuple[str, ...]] = ("perception_lm",)
    container: ClassVar[Container | Mapping[Source, Container]] = "flat"

    def described(self, config: Any, inputs: Mapping[str, Any]) -> list[Medium]:
        """Media of tiles or frames; all that are given together have equally many."""
        media: list[Medium] = []
        for source, token in self.token_ids(config).items():
            pixels = inputs.get(PIXELS[source])  # media, tiles or frames, 3, height, width
            if pixels is not None:
                number, frames = pixels.shape[:2]
                tokens = tokens_of_each(inputs["input_ids"], int(token or 0), number * frames, "tiles or frames")
                media += [side_by_side(source, frames, tokens)] * number
        return media

    def encode(self, model: Any, inputs: Mapping[str, Any]) -> dict[Source, Any]:
        """Videos, too, go through their method for images."""
        method = model.base_model.get_image_features
        given = {source: inputs[name] for source, name in PIXELS.items() if inputs.get(name) is not None}
        return {source: method(pixel_values=pixels, return_dict=True) for source, pixels in given.items()}


PIXELS: dict[Source, str] = {"image": "pixel_values", "video": "pixel_values_videos"}
