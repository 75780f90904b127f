"""SigLIP's vision weights under the names of transformers and timm (open_clip wraps timm's), both ways.

timm stacks queries, keys and values of a block; in the pooling head transformers stacks all three, timm keeps the
query apart and stacks keys and values.
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
"""A name that a tower of each layout surely has, and no other part of a model."""

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
_BACK = {theirs: ours for ours, theirs in _MODULES.items()}


def layout_of(state: Mapping[str, Tensor]) -> Layout:
    """Which library's names a state dict has, whatever prefix its tower has.

    Raises:
        CheckpointError: if it holds no SigLIP vision tower in either.
    """
    for layout, landmark in LANDMARKS.items():
        if any(name == landmark or name.endswith(f".{landmark}") for name in state):
            return layout
    raise CheckpointError(
        f"no SigLIP vision tower among {len(state)} tensors: none of {', '.join(LANDMARKS.values())} is there"
    )


def _renamed(name: str, modules: Mapping[str, str]) -> str | None:
    module, _, kind = name.rpartition(".")
    number = next((part for part in module.split(".") if part.isdigit()), None)
    found = modules.get(re.sub(r"\.\d+\.", ".{}.", module))
    return None if found is None else f"{found.format(number)}.{kind}"


def to_transformers(state: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """A vision tower's tensors, without prefix, under transformers' names.

    Raises:
        CheckpointError: for a name that the layout does not have.
    """
    if layout == "transformers":
        return dict(state)
    named: dict[str, Tensor] = {}
    for name, value in state.items():
        if (ours := _renamed(name, _BACK)) is not None:
            named[ours] = value
        elif stacked := re.fullmatch(r"blocks\.(\d+)\.attn\.qkv\.(\w+)", name):
            for part, chunk in zip("qkv", value.chunk(3), strict=True):
                named[f"encoder.layers.{stacked[1]}.self_attn.{part}_proj.{stacked[2]}"] = chunk.clone()
        elif name == "pos_embed":
            named["embeddings.position_embedding.weight"] = value.squeeze(0)
        elif name == "attn_pool.latent":
            named["head.probe"] = value
        elif apart := re.fullmatch(r"attn_pool\.q\.(\w+)", name):
            both = state[f"attn_pool.kv.{apart[1]}"]
            named[f"head.attention.in_proj_{apart[1]}"] = torch.cat([value, both])
        elif not re.fullmatch(r"attn_pool\.kv\.\w+", name):
            raise CheckpointError(f"{name!r} is no tensor of a SigLIP vision tower of {layout}")
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
