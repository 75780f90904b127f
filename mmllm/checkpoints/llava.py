"""LLaVA-1.5, as its authors released it and as transformers' `LlavaForConditionalGeneration` holds it.

| authors | transformers (also with `model.` in front) | here |
|---|---|---|
| `model.*`, `lm_head.*` | `language_model.model.*`, `language_model.lm_head.*` | `language_model.*` |
| `model.mm_projector.0`, `.2` | `multi_modal_projector.linear_1`, `_2` | `visual_tokenizer.0`, `.2` |
| `model.vision_tower.vision_tower.vision_model.*`, mostly absent | `vision_tower.vision_model.*` | `encoder.tower.*` |

Most files of the authors have no vision tower. It is then read from `mm_vision_tower`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mmllm.checkpoints import building, describing
from mmllm.checkpoints.names import LLM, MLP, TOWER, Table
from mmllm.checkpoints.processing import frames_that_fit, processor_of
from mmllm.config import MmllmConfig
from mmllm.model import MmllmForConditionalGeneration
from mmllm.processor import MmllmProcessor

NAME = "llava"
TABLE: Table = {**LLM, **MLP, **TOWER}


def recognises(upstream: Mapping[str, Any]) -> bool:
    """Whether a `config.json` belongs to this family."""
    if upstream.get("model_type") == "llava" and "text_config" in upstream:
        return True
    return describing.is_original(upstream) and not describing.is_tiled(upstream)


def describe(upstream: Mapping[str, Any], folder: Path | None = None) -> MmllmConfig:
    """Our configuration of a `config.json` of either layout.

    Raises:
        CheckpointError: if it asks for something that is not supported.
    """
    if describing.is_original(upstream):
        return describing.original(upstream, folder, family=NAME, training_note=describing.STILL_IMAGES)
    return describing.ported(upstream, family=NAME, training_note=describing.STILL_IMAGES)


def from_upstream(
    state: Mapping[str, Tensor], config: MmllmConfig | Mapping[str, Any], **options: Any
) -> MmllmForConditionalGeneration:
    """A model with the weights of a LLaVA-1.5 state dict of either layout; see `building.assemble`."""
    return building.assemble(state, describing.ours(config, describe), TABLE, what="LLaVA-1.5", **options)


def to_upstream(model: MmllmForConditionalGeneration) -> dict[str, Tensor]:
    """The model's weights under the names that its file had."""
    return building.disassemble(model, TABLE)


def processor(folder: Path, config: MmllmConfig) -> MmllmProcessor:
    """The processor that the folder's own files describe."""
    original = describing.is_original((config.origin or {}).get("config", {}))
    return processor_of(
        folder,
        config,
        chat_template="vicuna",
        system_prompt="vicuna" if original else "",
        num_frames=frames_that_fit(config),
        own_template=not original,
        own_preprocessing=not original,
        whole_text=not original,
    )
