"""LLaVA-NeXT-Video as transformers' `LlavaNextVideoForConditionalGeneration` holds it.

Images are read as in LLaVA-NeXT. Frames of videos are pooled before the projector, two by two patches.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mmllm.checkpoints import building, describing
from mmllm.checkpoints.llava_next import TABLE, canvases
from mmllm.checkpoints.processing import processor_of
from mmllm.config import MmllmConfig
from mmllm.errors import CheckpointError
from mmllm.model import MmllmForConditionalGeneration
from mmllm.processor import MmllmProcessor

NAME = "llava_next_video"
FRAMES = 8
"""Frames of a video in the published examples."""


def recognises(upstream: Mapping[str, Any]) -> bool:
    """Whether a `config.json` belongs to this family."""
    return upstream.get("model_type") == "llava_next_video"


def describe(upstream: Mapping[str, Any], folder: Path | None = None) -> MmllmConfig:  # noqa: ARG001 - as all families
    """Our configuration of a `config.json`.

    Raises:
        CheckpointError: if it asks for something that is not supported.
    """
    config = describing.resolved(upstream)
    if config.spatial_pool_mode not in ("average", "max"):
        raise CheckpointError(f"spatial_pool_mode = {config.spatial_pool_mode!r}: must be 'average' or 'max'")
    pool = {"name": "pool", "stride": config.spatial_pool_stride, "mode": config.spatial_pool_mode}
    return describing.ported(upstream, family=NAME, path="anyres", reducers=[pool])


def from_upstream(
    state: Mapping[str, Tensor], config: MmllmConfig | Mapping[str, Any], **options: Any
) -> MmllmForConditionalGeneration:
    """A model with the weights of a LLaVA-NeXT-Video state dict; see `building.assemble`."""
    return building.assemble(state, describing.ours(config, describe), TABLE, what="LLaVA-NeXT-Video", **options)


def to_upstream(model: MmllmForConditionalGeneration) -> dict[str, Tensor]:
    """The model's weights under the names that its file had."""
    return building.disassemble(model, TABLE)


def processor(folder: Path, config: MmllmConfig) -> MmllmProcessor:
    """The processor that the folder's own files describe."""
    upstream = (config.origin or {})["config"]
    return processor_of(folder, config, chat_template="vicuna", num_frames=FRAMES, pinpoints=canvases(upstream))
