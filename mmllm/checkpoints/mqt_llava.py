"""MQT-LLaVA's released layout: LLaVA-1.5's, with an elastic resampler in place of the projector.

| authors | here |
|---|---|
| `model.*`, `lm_head.*` | `language_model.*` |
| `model.query_abstractor.*` | `visual_tokenizer.*` |
| `model.vision_tower.vision_tower.vision_model.*`, mostly absent | `encoder.tower.*` |

The resampler's positions are read from the file, since training has changed them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mmllm.checkpoints import building, describing
from mmllm.checkpoints.names import LLM, TOWER, Table
from mmllm.checkpoints.processing import frames_that_fit, processor_of
from mmllm.config import MmllmConfig
from mmllm.model import MmllmForConditionalGeneration
from mmllm.processor import MmllmProcessor

NAME = "mqt_llava"
TABLE: Table = {**LLM, **TOWER, "visual_tokenizer.": ("model.query_abstractor.",)}


def recognises(upstream: Mapping[str, Any]) -> bool:
    """Whether a `config.json` belongs to this family."""
    return "query_abstractor_type" in upstream


def describe(upstream: Mapping[str, Any], folder: Path | None = None) -> MmllmConfig:
    """Our configuration of a `config.json`, with all 256 tokens: the file's training mode is ignored.

    Raises:
        CheckpointError: if it asks for something that is not supported.
    """
    describing.demand(upstream, NAME, query_abstractor_type=("matry_query",))
    return describing.original(
        upstream, folder, family=NAME, visual_tokenizer="mqt", training_note=describing.STILL_IMAGES
    )


def from_upstream(
    state: Mapping[str, Tensor], config: MmllmConfig | Mapping[str, Any], **options: Any
) -> MmllmForConditionalGeneration:
    """A model with the weights of an MQT-LLaVA state dict; see `building.assemble`."""
    config = describing.ours(config, describe)
    if (query := state.get("model.query_abstractor.query")) is not None:
        queries = len(query)
        config.visual_tokenizer |= {"queries": queries, "tokens": min(queries, config.visual_tokenizer["tokens"])}
    return building.assemble(state, config, TABLE, what="MQT-LLaVA", **options)


def to_upstream(model: MmllmForConditionalGeneration) -> dict[str, Tensor]:
    """The model's weights under the names that its file had."""
    return building.disassemble(model, TABLE)


def processor(folder: Path, config: MmllmConfig) -> MmllmProcessor:
    """The processor for the folder's tokenizer, with LLaVA-1.5's prompt."""
    return processor_of(
        folder,
        config,
        chat_template="vicuna",
        system_prompt="vicuna",
        num_frames=frames_that_fit(config, tokens_per_frame=int(config.visual_tokenizer["tokens"])),
        own_template=False,
        own_preprocessing=False,
        whole_text=False,
    )
