"""Video-LLaVA as transformers' `VideoLlavaForConditionalGeneration` holds it: a tower for images, one for videos.

| transformers (also with `model.` in front) | here |
|---|---|
| `language_model.*` | `language_model.*` |
| `multi_modal_projector.linear_1`, `_2`; the authors' `model.mm_projector.0`, `.2` | `visual_tokenizer.0`, `.2` |
| `video_tower.*`, which keeps its class token | `encoder.tower.*` |
| `image_tower.*` | `image_encoder.tower.*` |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from mmllm import registry
from mmllm.checkpoints import building, describing
from mmllm.checkpoints.names import LLM, MLP, Table
from mmllm.checkpoints.processing import processor_of
from mmllm.config import MmllmConfig
from mmllm.encoders.clip import ClipConfig
from mmllm.errors import CheckpointError
from mmllm.model import MmllmForConditionalGeneration
from mmllm.processor import MmllmProcessor

NAME = "video_llava"
FRAMES = 8
"""Frames of a video, in training as in the published evaluation."""


def _prefixes(kind: str) -> tuple[str, ...]:
    """All prefixes under which files have a tower of that name."""
    prefixes = (f"model.{kind}.", f"{kind}.", f"model.{kind}.{kind}.")
    return tuple(prefix + inner for prefix in prefixes for inner in ("", "vision_model."))


TABLE: Table = {
    **LLM,
    **MLP,
    "encoder.tower.": _prefixes("video_tower"),
    "image_encoder.tower.": _prefixes("image_tower"),
}


def recognises(upstream: Mapping[str, Any]) -> bool:
    """Whether a `config.json` belongs to this family."""
    return upstream.get("model_type") == "video_llava" or "mm_video_tower" in upstream


def describe(upstream: Mapping[str, Any], folder: Path | None = None) -> MmllmConfig:
    """Our configuration of a `config.json`.

    For the authors' own files, videos get a tower like that of images. Such files load only if the tower of videos has
    no attention over time.

    Raises:
        CheckpointError: if it asks for something that is not supported.
    """
    ported = upstream.get("model_type") == "video_llava"
    images = describing.tower(describing.resolved(upstream)) if ported else describing.original_tower(upstream, folder)
    if not isinstance(images, ClipConfig):
        raise CheckpointError(f"{NAME}: its towers must be CLIP, not {type(images).__name__}")
    towers = {
        "encoder": registry.describe("encoder", replace(images, class_token=True)),
        "image_encoder": registry.describe("encoder", images),
    }
    if ported:
        return describing.ported(upstream, family=NAME, **towers)
    return describing.original(upstream, folder, family=NAME, **towers)


def from_upstream(
    state: Mapping[str, Tensor], config: MmllmConfig | Mapping[str, Any], **options: Any
) -> MmllmForConditionalGeneration:
    """A model with the weights of a Video-LLaVA state dict; see `building.assemble`."""
    return building.assemble(state, describing.ours(config, describe), TABLE, what="Video-LLaVA", **options)


def to_upstream(model: MmllmForConditionalGeneration) -> dict[str, Tensor]:
    """The model's weights under the names that its file had."""
    return building.disassemble(model, TABLE)


def processor(folder: Path, config: MmllmConfig) -> MmllmProcessor:
    """The processor that the folder's own files describe."""
    ported = (config.origin or {})["config"].get("model_type") == NAME
    return processor_of(
        folder,
        config,
        chat_template="vicuna",
        system_prompt="" if ported else "vicuna",
        num_frames=FRAMES,
        own_template=ported,
        whole_text=ported,
    )
