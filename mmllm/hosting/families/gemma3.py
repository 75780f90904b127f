"""Gemma 3: 4 x 4 patches make a token, 256 an image; it takes no videos, so frames are images.

Tokens of an image see each other in both directions. The marks around an image are text and stay, so that two images
do not become one when tokens are dropped. Some layers see a window only; it counts the tokens that remain.
"""

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
class Gemma3Hosting:
    """Nothing to set."""


@register("host", "gemma3", config=Gemma3Hosting)
class Gemma3(HostFamily):
    """Gemma 3."""

    model_types: ClassVar[tuple[str, ...]] = ("gemma3",)
    placeholder: ClassVar[Mapping[Source, str]] = {"image": "image_token_id"}
    container: ClassVar[Container | Mapping[Source, Container]] = "flat"

    def described(self, config: Any, inputs: Mapping[str, Any]) -> list[Medium]:
        """Images close to each other are frames of a video."""
        tokens = config.mm_tokens_per_image
        groups = grouped(inputs["input_ids"], config.image_token_id, tokens)
        check_count(groups, len(inputs["pixel_values"]) if "pixel_values" in inputs else 0)
        return [side_by_side(modality, frames, tokens, source="image") for modality, frames in groups]

    def towers(self, model: Any) -> dict[Source, Tower]:
        """A tower without a class token."""
        tower = tower_of(model.base_model.vision_tower)
        return {} if tower is None else {"image": tower}

    def folded(self, model: Any, source: Source, calls: list[Tensor], inputs: Mapping[str, Any]) -> Tensor:
        """float32, V: the mean of the patches that their projector averages."""
        projector = model.base_model.multi_modal_projector
        maps = rearrange(torch.cat(calls), "f (h w) -> f 1 h w", h=projector.patches_per_image)
        return projector.avg_pool(maps).flatten()
