"""FastVLM: images, one token for each 64 x 64 pixels; frames of a video are images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from mmllm.hosting.family import Container, HostFamily
from mmllm.hosting.frames import check_count, grouped, side_by_side, tokens_of_each
from mmllm.hosting.media import Medium, Source
from mmllm.registry import register


@dataclass(frozen=True, kw_only=True)
class FastVlmHosting:
    """Nothing to set."""


@register("host", "fastvlm", config=FastVlmHosting)
class FastVlm(HostFamily):
    """FastVLM."""

    model_types: ClassVar[tuple[str, ...]] = ("fast_vlm",)
    placeholder: ClassVar[Mapping[Source, str]] = {"image": "image_token_id"}
    container: ClassVar[Container | Mapping[Source, Container]] = "flat"

    def described(self, config: Any, inputs: Mapping[str, Any]) -> list[Medium]:
        """Images close to each other are frames of a video. How many tokens one has depends on its size."""
        if inputs.get("pixel_values") is None:
            return []
        ids, pictures = inputs["input_ids"], len(inputs["pixel_values"])
        tokens = tokens_of_each(ids, config.image_token_id, pictures, "images")
        groups = grouped(ids, config.image_token_id, tokens)
        check_count(groups, pictures)
        return [side_by_side(modality, frames, tokens, source="image") for modality, frames in groups]
