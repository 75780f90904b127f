"""FastViTHD's tensors under the names of Apple's release and of timm (which transformers' FastVLM shares).

The release counts stages and the modules between them in one list, `network.0` to `network.10`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from mmllm.errors import CheckpointError
from mmllm.modeling.tower import below

_PLACES = {
    **{f"network.{number}": f"stages.{stage}.blocks" for stage, number in enumerate((0, 2, 4, 7, 10))},
    **{f"network.{number}": f"stages.{stage}.downsample" for stage, number in enumerate((1, 3, 5, 8), start=1)},
    "network.6": "stages.3.pos_emb",
    "network.9": "stages.4.pos_emb",
    "patch_embed": "stem",
    "conv_exp": "final_conv",
}
"""First part of a module's name: release -> timm."""
_RELEASE_PLACES = {timm_place: place for place, timm_place in _PLACES.items()}
_PARTS = (
    (".convffn.", ".mlp."),
    (".proj.0.lkb_reparam.", ".proj.0.reparam_conv."),
    ("final_conv.se.reduce.", "final_conv.se.fc1."),
    ("final_conv.se.expand.", "final_conv.se.fc2."),
)
"""Later parts of a module's name: release -> timm."""
_BRANCHES = (
    (".rbr_conv.", ".conv_kxk."),
    (".rbr_scale.", ".conv_scale."),
    (".rbr_skip.", ".identity."),
    (".lkb_origin.", ".large_conv."),
    (".pos_emb.pe.", ".pos_emb.pos_enc."),
)
"""Further parts that only the training form has: release -> timm."""
_LANDMARKS = {
    "patch_embed.0.reparam_conv.weight": (True, False),
    "patch_embed.0.rbr_conv.0.conv.weight": (True, True),
    "stem.0.reparam_conv.weight": (False, False),
    "stem.0.conv_kxk.0.conv.weight": (False, True),
}
"""A name that every tower of a form has -> whether it is the release's, whether it is the training form."""


def tower_of(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """The tower of a state dict under timm's names, without prefix and CLIP head; and whether it is in training form.

    Raises:
        CheckpointError: if there is no tower, or the weights are quantised for other hardware.
    """
    for landmark, (release, training_form) in _LANDMARKS.items():
        if any(name == landmark or name.endswith(f".{landmark}") for name in state):
            tower = below(state, landmark, what="FastViTHD")
            tower = to_timm(tower) if release else tower
            return {name: value for name, value in tower.items() if not name.startswith("head.")}, training_form
    if any(name.endswith(".scales") for name in state):
        raise CheckpointError("these weights are quantised for Apple hardware (MLX): use the safetensors release")
    raise CheckpointError(f"no FastViTHD among {len(state)} tensors: they must include one of {', '.join(_LANDMARKS)}")


def to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the release, without prefix, under timm's names; the CLIP head keeps its own."""
    named = {}
    for name, value in state.items():
        place, renamed = re.match(r"network\.\d+|patch_embed|conv_exp", name), name
        if place and place[0] in _PLACES:
            renamed = _PLACES[place[0]] + name[place.end() :]
            for release_part, timm_part in _PARTS + _BRANCHES:
                renamed = renamed.replace(release_part, timm_part)
            renamed = re.sub(r"(layer_scale(?:_[12])?)$", r"\1.gamma", renamed)
        named[renamed] = value
    return named


def to_release(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_timm` for the inference form."""
    named = {}
    for name, value in state.items():
        place, renamed = re.match(r"stages\.\d+\.(?:blocks|downsample|pos_emb)|stem|final_conv", name), name
        if place:
            renamed = name.removesuffix(".gamma")
            for release_part, timm_part in _PARTS:
                if "lkb_reparam" not in release_part or ".downsample." in renamed:
                    renamed = renamed.replace(timm_part, release_part)
            renamed = _RELEASE_PLACES[place[0]] + renamed[place.end() :]
        named[renamed] = value
    return named
