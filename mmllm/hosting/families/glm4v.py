"""GLM-4.1V, GLM-4.5V and GLM-4.6V: frames of videos carry the placeholder of images, with the time behind each frame.

transformers tells videos from images by `mm_token_type_ids`, but counts and repeats both by the image's placeholder: it
fails where a prompt has images and videos, and in beam search over videos; it mixes up several images of a row in beam
search. Here all go in as images, in prompt order, one tensor a row, and none of this fails.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmllm.errors import InputError
from mmllm.hosting.family import Container
from mmllm.hosting.media import Medium, Source
from mmllm.hosting.mrope_family import GRIDS, MropeFamily
from mmllm.registry import register


@dataclass(frozen=True, kw_only=True)
class Glm4vHosting:
    """Nothing to set."""


@register("host", "glm-4v", config=Glm4vHosting)
class Glm4v(MropeFamily):
    """GLM-4.1V, GLM-4.5V and GLM-4.6V."""

    model_types: ClassVar[tuple[str, ...]] = ("glm4v", "glm4v_moe", "glm46v")
    placeholder: ClassVar[Mapping[Source, str]] = {"image": "image_token_id"}
    container: ClassVar[Container | Mapping[Source, Container]] = "row list"
    splits_videos: ClassVar[bool] = True

    def described(self, config: Any, inputs: Mapping[str, Any]) -> list[Medium]:
        """Media in prompt order, all made by the method for images."""
        own: dict[Source, list[Medium]] = {"image": [], "video": []}
        for medium in super().described(config, inputs):
            own[medium.modality].append(
                Medium(
                    modality=medium.modality, source="image", frames=medium.frames, grid=medium.grid, count=medium.count
                )
            )
        return [own[modality][number] for modality, number in _order(inputs, own)]

    def encode(self, model: Any, inputs: Mapping[str, Any]) -> dict[Source, Any]:
        """Both methods' features as those of images, in prompt order."""
        outputs = super().encode(model, inputs)
        if not outputs:
            return {}
        features = {source: list(output.pooler_output) for source, output in outputs.items()}
        joint = next(iter(outputs.values()))
        joint.pooler_output = [features[modality][number] for modality, number in _order(inputs, features)]
        return {"image": joint}

    def scores(
        self, model: Any, inputs: Mapping[str, Any], calls: Mapping[Source, list[Tensor]]
    ) -> dict[Source, Tensor]:
        """Both methods' scores as those of images, in prompt order."""
        merge = model.config.vision_config.spatial_merge_size
        parts = {
            source: list(tokens.split((inputs[GRIDS[source]].prod(-1) // merge**2).tolist()))
            for source, tokens in super().scores(model, inputs, calls).items()
        }
        order = _order(inputs, parts)
        return {"image": torch.cat([parts[modality][number] for modality, number in order])} if order else {}


def _order(inputs: Mapping[str, Any], media: Mapping[Source, list[Any]]) -> list[tuple[Source, int]]:
    """Modality and number of each medium in prompt order, by the types of a prompt: 1 image, 2 a frame of a video.

    Raises:
        InputError: if types are missing, or say another number of media.
    """
    if not any(media.values()):
        return []
    types = inputs.get("mm_token_type_ids")
    if types is None:
        raise InputError("mm_token_type_ids are missing: the processor gives them beside input_ids")
    grids = inputs.get("video_grid_thw")
    frames = iter([] if grids is None else grids[:, 0].tolist())
    order: list[tuple[Source, int]] = []
    images = videos = 0
    for row in types.tolist():
        left = 0  # frames of a video that are still to come
        for kind, _ in itertools.groupby(row):
            if kind == 1:
                order.append(("image", images))
                images += 1
            elif kind == 2 and left:
                left -= 1
            elif kind == 2:
                order.append(("video", videos))
                videos, left = videos + 1, next(frames, 1) - 1
    if (images, videos) != (len(media.get("image", ())), len(media.get("video", ()))):
        given = f"{len(media.get('image', ()))} images and {len(media.get('video', ()))} videos"
        raise InputError(f"the prompt's types say {images} images and {videos} videos, but there are {given}")
    return order
