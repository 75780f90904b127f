"""LITA's released checkpoint layout (LLaVA-1 with time tokens), both ways and strictly.

| upstream | here |
|---|---|
| `model.embed_tokens.*`, `model.layers.*`, `model.norm.*`, `lm_head.weight` | `language_model.` + the same |
| `model.mm_projector.weight`, `.bias` | `visual_tokenizer.weight`, `.bias` |
| `model.vision_tower.vision_tower.vision_model.*` (may be absent) | `encoder.tower.*` |
| `...rotary_emb.inv_freq` | nothing: it is computed |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import LlamaConfig

from mmllm import registry
from mmllm.config import MmllmConfig
from mmllm.encoders.clip import ClipConfig, load_clip_tower
from mmllm.encoders.tower import load_strictly
from mmllm.errors import CheckpointError, ConfigError
from mmllm.model import MmllmForConditionalGeneration

PROJECTOR = "model.mm_projector."
TOWER = "model.vision_tower.vision_tower.vision_model."
_COMPUTED = (".rotary_emb.inv_freq", ".position_ids")
_LLAMA = {
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "max_position_embeddings", "rms_norm_eps", "vocab_size", "hidden_act", "initializer_range",
    "bos_token_id", "eos_token_id", "pad_token_id",
}  # fmt: skip


def lita_config(upstream: Mapping[str, Any], encoder: ClipConfig | None = None) -> MmllmConfig:
    """Our configuration of a LITA `config.json`.

    Args:
        upstream: the mapping of the file.
        encoder: the vision tower; CLIP ViT-L/14 at 224 pixels, the released one's, if None.

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
        raise CheckpointError(
            "LITA has no start, end or patch tokens around its visual tokens; this file asks for them"
        )
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
    )


def from_upstream(
    state: Mapping[str, Tensor], config: MmllmConfig, tower: Mapping[str, Tensor] | None = None
) -> MmllmForConditionalGeneration:
    """A model with the weights of a LITA state dict.

    Args:
        state: upstream names -> tensors.
        config: see `lita_config`.
        tower: CLIP's weights, where the state dict has none (as released).

    Raises:
        CheckpointError: if a tensor is missing, left over or of another shape; the message lists names.
    """
    if config.encoder["name"] != "clip" or config.visual_tokenizer["name"] != "linear":
        raise ConfigError("a LITA checkpoint needs the clip encoder and the linear projector")
    groups: dict[str, dict[str, Tensor]] = {"llm": {}, "projector": {}, "tower": {}}
    for name, tensor in state.items():
        if name.endswith(_COMPUTED):
            continue
        if name.startswith(PROJECTOR):
            groups["projector"][name.removeprefix(PROJECTOR)] = tensor
        elif name.startswith(TOWER):
            groups["tower"][name] = tensor
        else:
            groups["llm"][name] = tensor
    model = MmllmForConditionalGeneration(config)
    load_strictly(model.language_model, groups["llm"], what="the LLM of a LITA checkpoint")
    load_strictly(model.visual_tokenizer, groups["projector"], what="the projector of a LITA checkpoint")
    if not groups["tower"] and tower is None:
        raise CheckpointError("this LITA checkpoint has no vision tower: pass CLIP's weights as `tower`")
    load_clip_tower(model.encoder, groups["tower"] or tower or {})
    return model


def to_upstream(model: MmllmForConditionalGeneration) -> dict[str, Tensor]:
    """The model's weights under LITA's names, vision tower included."""
    prefixes = {"language_model.": "", "visual_tokenizer.": PROJECTOR, "encoder.tower.": TOWER}
    renamed: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        ours = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
        if ours is None:
            raise CheckpointError(f"LITA has no tensor for {name}")
        renamed[prefixes[ours] + name.removeprefix(ours)] = tensor
    return renamed
