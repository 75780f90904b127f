"""Slow-Fast's video LLM, as its authors released it: LLaVA's layout with cross-attention in some layers.

| authors | here |
|---|---|
| `model.layers.I.self_attn.cross_attn_kv_proj.*` | `decoder_stages.0.layers.I.kv_proj.*` |
| `model.layers.I.self_attn.cross_attn_gate_proj.0.*` | `decoder_stages.0.layers.I.gate.*` |
| `model.layers.I.self_attn.cross_attn_warm_up_gate` | `decoder_stages.0.layers.I.warm_up` |
| other `model.*`, `lm_head.*` | `language_model.*` |
| `model.mm_projector.0`, `.2` | `visual_tokenizer.0`, `.2` |
| `model.vision_tower.vision_tower.*`: timm's ConvNeXt, a block's layer scale is called `weight` | `encoder.tower.*`, `gamma` |

A classification head of the tower is not read. The tower's depths and widths are those of its tensors.
"""  # noqa: E501

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from mmllm import registry
from mmllm.checkpoints import building, describing
from mmllm.checkpoints.names import TOWER, Table
from mmllm.checkpoints.processing import processor_of
from mmllm.config import MmllmConfig
from mmllm.encoders.convnext import ConvNextConfig
from mmllm.errors import CheckpointError
from mmllm.fields import closest
from mmllm.model import MmllmForConditionalGeneration
from mmllm.processor import MmllmProcessor

NAME = "slowfast"
MODEL_TYPE = "llava_qwen_slow_fast"
TRUNK = "model.vision_tower.vision_tower."
NEW_GATES = (
    "this checkpoint has no cross_attn_* tensors: cross-attention starts with closed gates, so until it is trained the "
    "model reads its fast tokens alone, as its base model does"
)
QUERIES = {
    "text-only-vanilla": "text",
    "text-only-vanilla-flashattn": "text",
    "text-only-vanilla-masksystem": "text_after_visual",
    "text-only-vanilla-flashattn-masksystem": "text_after_visual",
    "vanilla": "all",
}
"""`cross_attn_implementation` -> who attends; a kernel makes no difference."""
GATES = {
    "whole-dynamic": (False, False),
    "whole-dynamic-tanh": (True, False),
    "whole-dynamic-warmup": (False, True),
    "whole-dynamic-tanh-warmup": (True, True),
}
"""`cross_attn_gating_type` -> whether the gate goes through tanh, and whether it has a warm-up factor."""
_LAYER_SCALE = re.compile(rf"({re.escape(TRUNK)}stages\.\d+\.blocks\.\d+)\.(weight|gamma)")
_STAGES = 4
log = logging.getLogger(__name__)


def recognises(upstream: Mapping[str, Any]) -> bool:
    """Whether a `config.json` belongs to this family."""
    return upstream.get("model_type") == MODEL_TYPE


def describe(upstream: Mapping[str, Any], folder: Path | None = None) -> MmllmConfig:
    """Our configuration of an authors' `config.json`.

    Raises:
        CheckpointError: if it asks for something that is not supported.
    """
    describing.demand(upstream, NAME, mm_patch_merge_type=("flat",))
    match = re.fullmatch(r"convnext-(\d+)", str(upstream.get("mm_vision_tower")))
    changes: dict[str, Any] = {}
    if match:
        changes["encoder"] = registry.describe("encoder", ConvNextConfig(image_size=int(match[1])))
    return describing.original(
        {**upstream, "model_type": "llava_qwen"},
        folder,
        family=NAME,
        path={
            "name": "slowfast-hybrid",
            "pool": upstream.get("mm_video_pooling_stride", 2),
            "sampling_stride": upstream.get("fast_token_temporal_sampling_stride", 1),
            "temporal_stride": upstream.get("fast_token_temporal_stride", 4),
            "spatial_stride": upstream.get("fast_token_spatial_stride", 1),
            "min_fast_frames": upstream.get("min_fast_frames", 16),
        },
        decoder_stages=[cross_attention(upstream)] if "cross_attn_every_n_layers" in upstream else [],
        origin={"family": NAME, "config": dict(upstream), "tower": str(upstream.get("mm_vision_tower"))},
        **changes,
    )


def cross_attention(upstream: Mapping[str, Any]) -> dict[str, Any]:
    """The stage inside the LLM that an authors' `config.json` describes.

    Raises:
        CheckpointError: if a variant is unknown; the message lists the known ones.
    """
    implementation = upstream.get("cross_attn_implementation", "text-only-vanilla-flashattn")
    gating = upstream.get("cross_attn_gating_type", "whole-dynamic-tanh-warmup")
    for key, value, known in (
        ("cross_attn_implementation", implementation, QUERIES),
        ("cross_attn_gating_type", gating, GATES),
    ):
        if value not in known:
            raise CheckpointError(f"config.json of {NAME}: {key} = {value!r:.80}; {closest(str(value), known)}")
    tanh, warm_up = GATES[gating]
    return {
        "name": "slow-cross-attention",
        "every": upstream["cross_attn_every_n_layers"],
        "min_layer": upstream.get("cross_attn_min_layer_depth", 0),
        "max_layer": upstream.get("cross_attn_max_layer_depth"),
        "queries": QUERIES[implementation],
        "gate_tanh": tanh,
        "gate_warm_up": warm_up,
    }


def table(config: MmllmConfig) -> Table:
    """Our prefixes and the authors'."""
    names: dict[str, tuple[str, ...]] = {"language_model.model.": ("model.",), "language_model.lm_head.": ("lm_head.",)}
    names |= {f"visual_tokenizer.{layer}.": (f"model.mm_projector.{layer}.",) for layer in (0, 2)}
    names["encoder.tower."] = (TRUNK,) if config.encoder["name"] == "convnext" else tuple(TOWER["encoder.tower."])
    for stage in config.stage("decoder_stages"):
        for layer in stage.layers(config.text_config.num_hidden_layers):
            ours, theirs = f"decoder_stages.0.layers.{layer}.", f"model.layers.{layer}.self_attn.cross_attn_"
            names |= {f"{ours}kv_proj.": (f"{theirs}kv_proj.",), f"{ours}gate.": (f"{theirs}gate_proj.0.",)}
            if stage.gate_warm_up:
                names[f"{ours}warm_up"] = (f"{theirs}warm_up_gate",)
    return names


def from_upstream(
    state: Mapping[str, Tensor], config: MmllmConfig | Mapping[str, Any], **options: Any
) -> MmllmForConditionalGeneration:
    """A model with the weights of an authors' state dict; see `building.assemble`.

    Without `cross_attn_*` tensors, those of a base model are made: the gates are closed.
    """
    config = describing.ours(config, describe)
    state, scale = _as_timm(state)
    if config.encoder["name"] == "convnext":
        config.encoder |= _trunk_sizes(state)
        width, told = config.encoder["dims"][-1], (config.origin or {}).get("config", {}).get("mm_hidden_size")
        if told not in (None, width):
            raise CheckpointError(f"mm_hidden_size = {told}, but the vision tower is {width} wide")
    if config.decoder_stages and not any(".cross_attn_" in name for name in state):
        state = {**state, **_new_gates(state, config)}
        config.training_note = NEW_GATES
        log.warning("%s", NEW_GATES)
    config.origin = {**(config.origin or {}), "layer_scale": scale}
    return building.assemble(state, config, table(config), what="Slow-Fast", **options)


def _as_timm(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The state dict with timm's names in its tower and without the tower's head; and how layer scales were called."""
    scale = "weight"
    renamed = {}
    for name, value in state.items():
        if name.startswith(f"{TRUNK}head."):
            continue
        if match := _LAYER_SCALE.fullmatch(name):
            name, scale = f"{match[1]}.gamma", match[2]
        renamed[name] = value
    return renamed, scale


def _trunk_sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Depths and widths of the tower in a state dict.

    Raises:
        CheckpointError: if a stage has no block.
    """
    depths, dims = [], []
    for stage in range(_STAGES):
        prefix = f"{TRUNK}stages.{stage}.blocks."
        kernels = [name for name in state if name.startswith(prefix) and name.endswith(".conv_dw.weight")]
        if not kernels:
            raise CheckpointError(f"this checkpoint has no vision tower: missing {prefix}0.conv_dw.weight")
        depths.append(len(kernels))
        dims.append(state[kernels[0]].shape[0])
    return {"depths": depths, "dims": dims}


def _new_gates(state: Mapping[str, Tensor], config: MmllmConfig) -> dict[str, Tensor]:
    """Tensors of cross-attention, under the authors' names, for a base model without them.

    Raises:
        CheckpointError: if the gates cannot be closed, or the layers have no keys and values to start from.
    """
    settings = config.stage("decoder_stages")[0]
    if not settings.gate_warm_up:
        raise CheckpointError(
            "this checkpoint has no cross_attn_* tensors, and without a warm-up factor the gates cannot be closed"
        )
    meta = any(value.is_meta for value in state.values())
    with torch.device("meta" if meta else "cpu"):
        stage = registry.build("decoder_stage", settings, decoder=config.text_config)
    dtype = state["model.embed_tokens.weight"].dtype
    for number, own in stage.layers.items():
        attention = f"model.layers.{number}.self_attn."
        parts = {}
        for name in ("k_proj", "v_proj"):
            if f"{attention}{name}.weight" not in state:
                raise CheckpointError(f"weights do not fit Slow-Fast; missing: {attention}{name}.weight")
            tensors = {kind: state.get(f"{attention}{name}.{kind}") for kind in ("weight", "bias")}
            parts[name] = SimpleNamespace(**tensors)
        own.start_from(SimpleNamespace(**parts), aligned=settings.kv_init != "scrambled")
    prefixes = table(config)
    made = {f"decoder_stages.0.{name}": value.to(dtype) for name, value in stage.state_dict().items()}
    named = {ours: theirs[0] for ours, theirs in prefixes.items() if ours.startswith("decoder_stages.")}
    return {
        theirs + name.removeprefix(ours): value
        for name, value in made.items()
        for ours, theirs in named.items()
        if name.startswith(ours)
    }


def to_upstream(model: MmllmForConditionalGeneration) -> dict[str, Tensor]:
    """The model's weights under the authors' names."""
    state = building.disassemble(model, table(model.config))
    scale = (model.config.origin or {}).get("layer_scale", "weight")
    return {_LAYER_SCALE.sub(rf"\1.{scale}", name): value for name, value in state.items()}


def processor(folder: Path, config: MmllmConfig) -> MmllmProcessor:
    """The processor of the folder's tokenizer, with the authors' prompt, number of frames and rule of their benchmarks.

    The file does not say how many frames there are: as many as make the least number of fast frames, which are the
    released 64, 96 and 128.
    """
    path = config.stage("path")
    return processor_of(
        folder,
        config,
        chat_template="chatml",
        system_prompt="qwen",
        num_frames=path.min_fast_frames * path.sampling_stride * path.temporal_stride,
        own_template=False,
        own_preprocessing=False,
        whole_text=False,
        sampling="slow-fast:fps=2",
    )
