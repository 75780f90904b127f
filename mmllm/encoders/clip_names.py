"""CLIP's vision weights under the names of transformers, open_clip and timm, renamed in all directions.

The three hold the same numbers. open_clip and timm stack queries, keys and values in one tensor. timm keeps leading
axes of size 1 on the class token and the positions. Each stores the output projection in its own way.

C width, P width of the projection
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from mmllm.errors import CheckpointError

Layout = Literal["transformers", "open_clip", "timm"]

LANDMARKS: dict[Layout, str] = {
    "transformers": "embeddings.patch_embedding.weight",
    "open_clip": "conv1.weight",
    "timm": "patch_embed.proj.weight",
}
"""A tensor that every tower of a layout has, and no other part of a model."""

_MODULES: dict[str, tuple[str, str]] = {
    "embeddings.patch_embedding": ("conv1", "patch_embed.proj"),
    "pre_layrnorm": ("ln_pre", "norm_pre"),
    "post_layernorm": ("ln_post", "norm"),
    "encoder.layers.{}.layer_norm1": ("transformer.resblocks.{}.ln_1", "blocks.{}.norm1"),
    "encoder.layers.{}.layer_norm2": ("transformer.resblocks.{}.ln_2", "blocks.{}.norm2"),
    "encoder.layers.{}.self_attn.out_proj": ("transformer.resblocks.{}.attn.out_proj", "blocks.{}.attn.proj"),
    "encoder.layers.{}.mlp.fc1": ("transformer.resblocks.{}.mlp.c_fc", "blocks.{}.mlp.fc1"),
    "encoder.layers.{}.mlp.fc2": ("transformer.resblocks.{}.mlp.c_proj", "blocks.{}.mlp.fc2"),
}
"""Module in transformers -> in open_clip and in timm; {} is the block's number."""
_STACKED = {"open_clip": "transformer.resblocks.{}.attn.in_proj_{}", "timm": "blocks.{}.attn.qkv.{}"}
_SPLIT = "encoder.layers.{}.self_attn.{}_proj.{}"


def layout_of(state: Mapping[str, Tensor]) -> Layout:
    """The library whose names a state dict has; its tower may have any prefix.

    Raises:
        CheckpointError: if it holds no CLIP vision tower under any library's names.
    """
    for layout, landmark in LANDMARKS.items():
        if any(name == landmark or name.endswith(f".{landmark}") for name in state):
            return layout
    raise CheckpointError(
        f"no CLIP vision tower among {len(state)} tensors: they must include one of {', '.join(LANDMARKS.values())}"
    )


def _renamed(name: str, column: int | None, target_column: int | None) -> str | None:
    """The name of a tensor in another layout; None if the tensor is more than renamed.

    Columns are those of `_MODULES`; None is transformers.
    """
    module, _, kind = name.rpartition(".")
    number = next((part for part in module.split(".") if part.isdecimal()), None)
    pattern = re.sub(r"\.\d+\.", ".{}.", module)
    for ours, theirs in _MODULES.items():
        if pattern == (ours if column is None else theirs[column]):
            target = ours if target_column is None else theirs[target_column]
            return f"{target.format(number)}.{kind}"
    return None


def to_transformers(state: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """A vision tower's tensors, without prefix, under transformers' names.

    Raises:
        CheckpointError: for a name that the layout does not have.
    """
    if layout == "transformers":
        return dict(state)
    column, named = ("open_clip", "timm").index(layout), {}
    for name, value in state.items():
        if (ours := _renamed(name, column, None)) is not None:
            named[ours] = value
        elif stacked := re.fullmatch(r"(?:transformer\.resblocks|blocks)\.(\d+)\.attn\.(?:in_proj_|qkv\.)(\w+)", name):
            for part, chunk in zip("qkv", value.chunk(3), strict=True):
                named[_SPLIT.format(stacked[1], part, stacked[2])] = chunk.clone()
        elif name in ("class_embedding", "cls_token"):
            named["embeddings.class_embedding"] = value.flatten()
        elif name in ("positional_embedding", "pos_embed"):
            named["embeddings.position_embedding.weight"] = value.reshape(value.shape[-2:])
        elif name == "proj":
            named["visual_projection.weight"] = value.T.contiguous()
        elif name == "head.weight":
            named["visual_projection.weight"] = value
        elif name == "head.bias" and not value.any():
            continue  # timm's projection has a bias, CLIP's has none
        else:
            raise CheckpointError(f"{name!r} is no tensor of a CLIP vision tower under {layout}'s names")
    return named


def from_transformers(state: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """The inverse of `to_transformers`.

    Raises:
        CheckpointError: for a name that transformers' tower does not have.
    """
    if layout == "transformers":
        return dict(state)
    column, named = ("open_clip", "timm").index(layout), {}
    for name, value in state.items():
        if (theirs := _renamed(name, None, column)) is not None:
            named[theirs] = value
        elif split := re.fullmatch(r"encoder\.layers\.(\d+)\.self_attn\.[qkv]_proj\.(\w+)", name):
            parts = [state[_SPLIT.format(split[1], part, split[2])] for part in "qkv"]
            named[_STACKED[layout].format(split[1], split[2])] = torch.cat(parts)
        elif name == "embeddings.class_embedding":
            named.update({"class_embedding": value} if column == 0 else {"cls_token": value.view(1, 1, -1)})
        elif name == "embeddings.position_embedding.weight":
            named.update({"positional_embedding": value} if column == 0 else {"pos_embed": value.unsqueeze(0)})
        elif name == "visual_projection.weight" and column == 0:
            named["proj"] = value.T.contiguous()
        elif name == "visual_projection.weight":
            named.update({"head.weight": value, "head.bias": value.new_zeros(len(value))})
        elif name != "embeddings.position_ids":
            raise CheckpointError(f"{name!r} is no tensor of transformers' CLIP vision tower")
    return named
