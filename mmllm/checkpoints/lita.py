"""LITA's released checkpoint layout (LLaVA-1 with time tokens), both ways and strictly.

| upstream | here |
|---|---|
| `model.embed_tokens.*`, `model.layers.*`, `model.norm.*`, `lm_head.weight` | `language_model.` + the same |
| `model.mm_projector.weight`, `.bias` | `visual_tokenizer.weight`, `.bias` |
| `model.vision_tower.vision_tower.vision_model.*` (may be absent) | `encoder.tower.*` |
| `...rotary_emb.inv_freq`, `...embeddings.position_ids` | nothing; computed instead |
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import LlamaConfig

from mmllm import registry
from mmllm.checkpoints import building, describing
from mmllm.checkpoints.names import LLM, Table
from mmllm.checkpoints.processing import processor_of
from mmllm.config import MmllmConfig
from mmllm.encoders.clip import ClipConfig
from mmllm.errors import CheckpointError, ConfigError
from mmllm.model import MmllmForConditionalGeneration
from mmllm.processor import MmllmProcessor

PROJECTOR = "model.mm_projector."
TOWER = "model.vision_tower.vision_tower.vision_model."
NAME = "lita"
TABLE: Table = {
    **LLM,
    "visual_tokenizer.": (PROJECTOR,),
    "encoder.tower.": ("model.vision_tower.vision_tower.", TOWER),
}
_LLAMA = {
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "max_position_embeddings", "rms_norm_eps", "vocab_size", "hidden_act", "initializer_range",
    "bos_token_id", "eos_token_id", "pad_token_id",
}  # fmt: skip


def lita_config(upstream: Mapping[str, Any], encoder: ClipConfig | None = None) -> MmllmConfig:
    """Our configuration of a LITA `config.json`.

    Args:
        upstream: the mapping of the file.
        encoder: the vision tower; if None, the released one, CLIP ViT-L/14 at 224 pixels.

    Raises:
        CheckpointError: if the time token ids are not the last, contiguous rows of the vocabulary.
    """
    count = int(upstream.get("num_time_tokens", 100))
    vocabulary = int(upstream["vocab_size"])
    ids = list(upstream.get("time_token_ids") or range(vocabulary - count, vocabulary))
    if ids != list(range(vocabulary - count, vocabulary)):
        raise CheckpointError(
            f"time_token_ids must be the last {count} rows of the vocabulary of {vocabulary}, not {ids[:3]}..."
        )
    if upstream.get("mm_use_im_start_end") or upstream.get("mm_use_im_patch_token"):
        raise CheckpointError("this file asks for start, end or patch tokens around the visual tokens; LITA has none")
    tower = encoder or ClipConfig(image_size=224, select_layer=int(upstream.get("mm_vision_select_layer", -2)))
    return MmllmConfig(
        text_config=LlamaConfig(**{name: upstream[name] for name in _LLAMA if name in upstream}).to_dict(),
        encoder=registry.describe("encoder", tower),
        visual_tokenizer="linear",
        path={
            "name": "slowfast",
            "mode": upstream.get("video_arch", "temporal_spatial_pool"),
            "image_frames": int(upstream.get("num_frames", 100)),
        },
        num_time_tokens=count,
        time_token_ids=ids,
        video_token_id=vocabulary,
        image_token_id=vocabulary + 1,
        origin={"family": NAME, "config": {"mm_vision_tower": "", **upstream}},
    )


def recognises(upstream: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is LITA's: LLaVA's layout with time tokens."""
    return "mm_vision_tower" in upstream and "num_time_tokens" in upstream


def describe(upstream: Mapping[str, Any], folder: Path | None = None) -> MmllmConfig:
    """Our configuration of a LITA `config.json`, with the tower that it names."""
    tower = describing.original_tower(upstream, folder)
    if not isinstance(tower, ClipConfig):
        raise CheckpointError(
            f"mm_vision_tower = {upstream['mm_vision_tower']!r} is no CLIP tower; LITA's tower is CLIP"
        )
    return lita_config(upstream, tower)


def from_upstream(
    state: Mapping[str, Tensor],
    config: MmllmConfig | Mapping[str, Any],
    tower: Mapping[str, Tensor] | None = None,
    **options: Any,
) -> MmllmForConditionalGeneration:
    """A model with the weights of a LITA state dict.

    Args:
        state: upstream names -> tensors.
        config: see `lita_config`.
        tower: weights of CLIP, for a state dict without them, as the released one is.
        options: see `building.assemble`.

    Raises:
        CheckpointError: if a tensor is missing, unexpected or of another shape; the message lists names.
        ConfigError: if the configuration has another encoder or projector.
    """
    config = describing.ours(config, describe)
    if config.encoder["name"] != "clip" or config.visual_tokenizer["name"] != "linear":
        raise ConfigError(
            f"a LITA checkpoint needs the encoder clip and the projector linear, not {config.encoder['name']} and "
            f"{config.visual_tokenizer['name']}"
        )
    return building.assemble(state, config, TABLE, what="LITA", tower=tower, **options)


def to_upstream(model: MmllmForConditionalGeneration) -> dict[str, Tensor]:
    """The model's weights under LITA's names."""
    return building.disassemble(model, TABLE)


def processor(folder: Path, config: MmllmConfig) -> MmllmProcessor:
    """The processor for a folder's tokenizer, with LITA's prompt and number of frames."""
    frames = int(config.path.get("image_frames", 100))
    return processor_of(
        folder,
        config,
        chat_template="vicuna",
        system_prompt="vicuna-human",
        num_frames=frames,
        own_template=False,
        own_preprocessing=False,
        whole_text=False,
    )
