"""LLaVA-NeXT (1.6), as its authors released it and as transformers' `LlavaNextForConditionalGeneration` holds it.

It has LLaVA-1.5's tensors and `image_newline`. That token ends each row of the mosaic of an image's tiles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from mmllm.checkpoints import building, describing
from mmllm.checkpoints.names import LLM, MLP, TOWER, Table
from mmllm.checkpoints.processing import frames_that_fit, processor_of
from mmllm.config import MmllmConfig
from mmllm.errors import CheckpointError
from mmllm.model import MmllmForConditionalGeneration
from mmllm.processor import MmllmProcessor

NAME = "llava_next"
TABLE: Table = {**LLM, **MLP, **TOWER, "path.newline": ("model.image_newline", "image_newline")}


def recognises(upstream: Mapping[str, Any]) -> bool:
    """Whether a `config.json` belongs to this family."""
    if upstream.get("model_type") == "llava_next":
        return True
    return describing.is_original(upstream) and describing.is_tiled(upstream)


def describe(upstream: Mapping[str, Any], folder: Path | None = None) -> MmllmConfig:
    """Our configuration of a `config.json` of either layout.

    Raises:
        CheckpointError: if it asks for something that is not supported.
    """
    note = describing.STILL_IMAGES
    if not describing.is_original(upstream):
        return describing.ported(upstream, family=NAME, path="anyres", training_note=note)
    merges = ("spatial_unpad", "spatial")
    describing.demand(upstream, NAME, mm_patch_merge_type=merges, image_aspect_ratio=("anyres",))
    path = {"name": "anyres", "unpad": upstream.get("mm_patch_merge_type") == "spatial_unpad"}
    return describing.original(upstream, folder, family=NAME, path=path, training_note=note)


def from_upstream(
    state: Mapping[str, Tensor], config: MmllmConfig | Mapping[str, Any], **options: Any
) -> MmllmForConditionalGeneration:
    """A model with the weights of a LLaVA-NeXT state dict of either layout; see `building.assemble`."""
    return building.assemble(state, describing.ours(config, describe), TABLE, what="LLaVA-NeXT", **options)


def to_upstream(model: MmllmForConditionalGeneration) -> dict[str, Tensor]:
    """The model's weights under the names that its file had."""
    return building.disassemble(model, TABLE)


def processor(folder: Path, config: MmllmConfig) -> MmllmProcessor:
    """The processor that the folder's own files describe."""
    upstream = (config.origin or {})["config"]
    original = describing.is_original(upstream)
    mistral = config.text_config.model_type == "mistral"
    return processor_of(
        folder,
        config,
        chat_template="mistral" if mistral else "vicuna",
        system_prompt="vicuna" if original and not mistral else "",
        num_frames=frames_that_fit(config),
        own_template=not original,
        own_preprocessing=not original,
        whole_text=not original,
        pinpoints=canvases(upstream),
    )


def canvases(upstream: Mapping[str, Any]) -> list[list[int]]:
    """The canvases (height, width) in pixels on which images are placed; the authors' files list (width, height).

    Raises:
        CheckpointError: if there is none, or one is no pair.
    """
    if describing.is_original(upstream):
        listed: Any = upstream.get("image_grid_pinpoints")
    else:
        listed = describing.resolved(upstream).image_grid_pinpoints
    if not isinstance(listed, Sequence) or isinstance(listed, str) or not all(len(pair) == 2 for pair in listed):
        raise CheckpointError(f"image_grid_pinpoints must be a list of pairs of pixels, not {listed!r:.200}")
    return [[int(a), int(b)][:: -1 if describing.is_original(upstream) else 1] for a, b in listed]
