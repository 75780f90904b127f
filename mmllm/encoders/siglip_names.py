"""SigLIP's vision weights under the names of transformers and timm, renamed both ways. open_clip wraps timm's tower.

In a block, timm stacks queries, keys and values, and transformers does not. In the pooling head, transformers stacks
all three, and timm stacks only keys and values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from mmllm.errors import CheckpointError

Layout = Literal["transformers", "timm"]

LANDMARKS: dict[Layout, str] = {
    "transformers": "embeddings.patch_embedding.weight",
    "timm": "patch_embed.proj.weight",
}
"""A tensor that every tower of a layout has, and no other part of a model."""

_MODULES: dict[str, str] = {
    "embeddings.patch_embedding": "patch_embed.proj",
    "post_layernorm": "norm",
    "encoder.layers.{}.layer_norm1": "blocks.{}.norm1",
    "encoder.layers.{}.layer_norm2": "blocks.{}.norm2",
    "encoder.layers.{}.self_attn.out_proj": "blocks.{}.attn.proj",
    "encoder.layers.{}.mlp.fc1": "blocks.{}.mlp.fc1",
    "encoder.layers.{}.mlp.fc2": "blocks.{}.mlp.fc2",
    "head.attention.out_proj": "attn_pool.proj",
    "head.layernorm": "attn_pool.norm",
    "head.mlp.fc1": "attn_pool.mlp.fc1",
    "head.mlp.fc2": "attn_pool.mlp.fc2",
}
"""Module in transformers -> in timm; {} is the block's number."""
_TIMM_MODULES = {timm_module: module for module, timm_module in _MODULES.items()}
"""Module in timm -> in transformers."""


def layout_of(state: Mapping[str, Tensor]) -> Layout:
    """The library whose names a state dict has; its tower may have any prefix.

    Raises:
        CheckpointError: if it holds no SigLIP vision tower under either library's names.
    """
    for layout, landmark in LANDMARKS.items():
        if any(name == landmark or name.endswith(f".{landmark}") for name in state):
            return layout
    raise CheckpointError(
        f"no SigLIP vision tower among {len(state)} tensors: they must include one of {', '.join(LANDMARKS.values())}"
    )


def _renamed(name: str, modules: Mapping[str, str]) -> str | None:
    """The name of a tensor in the other layout; None if the tensor is more than renamed."""
    module, _, kind = name.rpartition(".")
    number = next((part for part in module.split(".") if part.isdecimal()), None)
    target = modules.get(re.sub(r"\.\d+\.", ".{}.", module))
    return None if target is None else f"{target.format(number)}.{kind}"


def to_transformers(state: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """A vision tower's tensors, without prefix, under transformers' names.

    Raises:
        CheckpointError: for a name that the layout does not have.
    """
    if layout == "transformers":
        return dict(state)
    named: dict[str, Tensor] = {}
    for name, value in state.items():
        if (ours := _renamed(name, _TIMM_MODULES)) is not None:
            named[ours] = value
        elif stacked := re.fullmatch(r"blocks\.(\d+)\.attn\.qkv\.(\w+)", name):
            for part, chunk in zip("qkv", value.chunk(3), strict=True):
                named[f"encoder.layers.{stacked[1]}.self_attn.{part}_proj.{stacked[2]}"] = chunk.clone()
        elif name == "pos_embed":
            named["embeddings.position_embedding.weight"] = value.squeeze(0)
        elif name == "attn_pool.latent":
            named["head.probe"] = value
        elif query := re.fullmatch(r"attn_pool\.q\.(\w+)", name):
            keys_and_values = state[f"attn_pool.kv.{query[1]}"]
            named[f"head.attention.in_proj_{query[1]}"] = torch.cat([value, keys_and_values])
        elif not re.fullmatch(r"attn_pool\.kv\.\w+", name):
            raise CheckpointError(f"{name!r} is no tensor of a SigLIP vision tower under {layout}'s names")
    return named


def from_transformers(state: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """The inverse of `to_transformers`.

    Raises:
        CheckpointError: for a name that transformers' tower does not have.
    """
    if layout == "transformers":
        return dict(state)
    named: dict[str, Tensor] = {}
    for name, value in state.items():
        if (theirs := _renamed(name, _MODULES)) is not None:
            named[theirs] = value
        elif split := re.fullmatch(r"encoder\.layers\.(\d+)\.self_attn\.[qkv]_proj\.(\w+)", name):
            parts = [state[f"encoder.layers.{split[1]}.self_attn.{part}_proj.{split[2]}"] for part in "qkv"]
            named[f"blocks.{split[1]}.attn.qkv.{split[2]}"] = torch.cat(parts)
        elif name == "embeddings.position_embedding.weight":
            named["pos_embed"] = value.unsqueeze(0)
        elif name == "head.probe":
            named["attn_pool.latent"] = value
        elif stacked := re.fullmatch(r"head\.attention\.in_proj_(\w+)", name):
            width = len(value) // 3
            named[f"attn_pool.q.{stacked[1]}"] = value[:width].clone()
            named[f"attn_pool.kv.{stacked[1]}"] = value[width:].clone()
        elif name != "embeddings.position_ids":
            raise CheckpointError(f"{name!r} is no tensor of transformers' SigLIP vision tower")
    return named
