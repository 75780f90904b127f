"""FastVLM: Apple's release, and transformers' `FastVlmForConditionalGeneration`.

| Apple's release | transformers (also without `model.`) | here |
|---|---|---|
| `model.*`, `lm_head.*` | `model.language_model.*`, `lm_head.*` | `language_model.*` |
| `model.mm_projector.0`, `.2` | `model.multi_modal_projector.linear_1`, `_2` | `visual_tokenizer.0`, `.2` |
| `model.vision_tower.vision_tower.model.*`, names of `mmllm.encoders.fastvithd_names` | `model.vision_tower.timm_model.*` | `encoder.tower.*` |
| `...model.head.proj`, CLIP's head, unused | | `encoder.tower.head.fc`, transposed |

A tower in training form has several parallel branches. They are fused when it is read.
"""  # noqa: E501

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from mmllm import registry
from mmllm.checkpoints import building, describing
from mmllm.checkpoints.names import LLM, MLP, Table, used_prefixes
from mmllm.checkpoints.processing import frames_that_fit, image_size, processor_of
from mmllm.config import MmllmConfig
from mmllm.encoders.fastvithd import STRIDE, FastVitHdConfig, inference_form
from mmllm.encoders.fastvithd_names import to_release, to_timm
from mmllm.errors import CheckpointError
from mmllm.model import MmllmForConditionalGeneration
from mmllm.processor import MmllmProcessor

NAME = "fastvlm"
RELEASE = "model.vision_tower.vision_tower.model."
TABLE: Table = {
    **LLM,
    **MLP,
    "encoder.tower.": ("model.vision_tower.timm_model.", "vision_tower.timm_model.", RELEASE),
}


def recognises(upstream: Mapping[str, Any]) -> bool:
    """Whether a `config.json` belongs to this family."""
    return upstream.get("model_type") == "fast_vlm" or "mobileclip" in str(upstream.get("mm_vision_tower", ""))


def describe(upstream: Mapping[str, Any], folder: Path | None = None) -> MmllmConfig:
    """Our configuration of a `config.json` of either layout. In transformers' layout, another file has the size.

    Raises:
        CheckpointError: if it asks for something that is not supported.
    """
    changes = {"family": NAME, "training_note": describing.STILL_IMAGES}
    if upstream.get("model_type") != "fast_vlm":
        match = re.fullmatch(r".*mobileclip_l_(\d+)", str(upstream["mm_vision_tower"]))
        if not match:
            raise CheckpointError(f"mm_vision_tower = {upstream['mm_vision_tower']!r}: must be 'mobileclip_l_SIZE'")
        fit = "pad" if upstream.get("image_aspect_ratio", "pad") == "pad" else "crop"
        encoder = FastVitHdConfig(image_size=int(match[1]), fit=fit)  # type: ignore[arg-type]
        return describing.original(upstream, folder, encoder=registry.describe("encoder", encoder), **changes)
    vision = describing.resolved(upstream).vision_config
    if vision.architecture != "fastvit_mci3":
        raise CheckpointError(f"vision tower {vision.architecture!r}: must be 'fastvit_mci3'")
    size = image_size(folder) if folder is not None else None
    if size is None:
        size = STRIDE * math.isqrt(int(upstream.get("image_seq_length", 256)))
    arguments = vision.model_args or {}
    sizes: dict[str, Any] = {ours: tuple(arguments[theirs]) for ours, theirs in _SIZES.items() if theirs in arguments}
    encoder = replace(FastVitHdConfig(image_size=size, fit="crop"), **sizes)
    return describing.ported(upstream, encoder=registry.describe("encoder", encoder), **changes)


_SIZES = {"layers": "layers", "dims": "embed_dims"}
"""Field of `FastVitHdConfig` -> argument of timm's network."""


def from_upstream(
    state: Mapping[str, Tensor], config: MmllmConfig | Mapping[str, Any], **options: Any
) -> MmllmForConditionalGeneration:
    """A model with the weights of a FastVLM state dict of either layout; see `building.assemble`."""
    config = describing.ours(config, describe)
    head = state.get(f"{RELEASE}head.proj")
    config.encoder |= {"clip_width": None if head is None else head.shape[1]}
    return building.assemble(_tower_as_timm(state, config), config, TABLE, what="FastVLM", **options)


def _tower_as_timm(state: Mapping[str, Tensor], config: MmllmConfig) -> dict[str, Tensor]:
    """The state dict with its tower in inference form and under timm's names; the prefix stays."""
    prefix = used_prefixes(state, TABLE).get("encoder.tower.")
    if prefix is None:
        return dict(state)
    tower = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    rest = {name: value for name, value in state.items() if not name.startswith(prefix)}
    if any(".rbr_conv." in name or ".conv_kxk." in name for name in tower):
        head = tower.pop("head.proj", None)
        tower = inference_form(config.stage("encoder"), tower)
        tower |= {} if head is None else {"head.proj": head}
    named = to_timm(tower) if prefix == RELEASE else tower
    if (head := named.pop("head.proj", None)) is not None:
        named["head.fc.weight"] = head.T.contiguous()
        named["head.fc.bias"] = head.new_zeros(head.shape[1])
    return {**rest, **{prefix + name: value for name, value in named.items()}}


def to_upstream(model: MmllmForConditionalGeneration) -> dict[str, Tensor]:
    """The model's weights under the names that its file had."""
    state = building.disassemble(model, TABLE)
    tower = {name: value for name, value in state.items() if name.startswith(RELEASE)}
    if not tower:
        return state
    rest = {name: value for name, value in state.items() if name not in tower}
    named = to_release({name.removeprefix(RELEASE): value for name, value in tower.items()})
    if (head := named.pop("head.fc.weight", None)) is not None:
        named["head.proj"] = head.T.contiguous()
        del named["head.fc.bias"]  # zero: the release's head has none
    return {**rest, **{RELEASE + name: value for name, value in named.items()}}


def processor(folder: Path, config: MmllmConfig) -> MmllmProcessor:
    """The processor that the folder's own files describe. Images of Apple's release are padded with black."""
    ported = (config.origin or {})["config"].get("model_type") == "fast_vlm"
    return processor_of(
        folder,
        config,
        chat_template="chatml",
        system_prompt="" if ported else "qwen",
        num_frames=frames_that_fit(config),
        own_template=ported,
        own_preprocessing=ported,
        whole_text=ported,
    )
