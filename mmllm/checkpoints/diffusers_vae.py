"""Tensors and settings of diffusers' AutoencoderKL: as part of a published FlexTok, or in a folder of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mmllm.checkpoints.names import Names
from mmllm.checkpoints.weights import Weights
from mmllm.errors import CheckpointError, ConfigError
from mmllm.hub.sources import local_folder, read_json
from mmllm.modeling.tower import load_strictly
from mmllm.tokenizers.autoencoders.latents import Latents, LatentsConfig

_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Old names of an attention's layers, which files of earlier versions of diffusers have."""
_OLD_NAME = re.compile(rf"(.*\.attentions\.\d+\.)({'|'.join(_OLD)})(\..*)")
NAMES: Names = {
    "encoder.net.encoder.": "encoder.",
    "encoder.net.quant_conv.": "quant_conv.",
    "decoder.decoder.": "decoder.",
    "decoder.post_quant_conv.": "post_quant_conv.",
}
"""Beginnings of the names of `Latents` -> of an AutoencoderKL."""


def current_name(name: str) -> str:
    """The name of a tensor in diffusers of today."""
    old = _OLD_NAME.fullmatch(name)
    return f"{old[1]}{_OLD[old[2]]}{old[3]}" if old else name


def settings_of(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The settings of an AutoencoderKL that follow from its tensors (names and shapes); all but the norms' groups.

    Raises:
        CheckpointError: if these are no tensors of an AutoencoderKL.
    """
    found: dict[int, set[int]] = {}
    for name in tensors:
        if place := re.match(r"encoder\.down_blocks\.(\d{1,3})\.resnets\.(\d{1,3})\.", name):
            found.setdefault(int(place[1]), set()).add(int(place[2]))
    try:
        widths = [
            tensors[f"encoder.down_blocks.{number}.resnets.0.conv2.weight"].shape[0] for number in range(len(found))
        ]
        return {
            "in_channels": tensors["encoder.conv_in.weight"].shape[1],
            "out_channels": 3,
            "block_out_channels": widths,
            "layers_per_block": len(found[0]),
            "latent_channels": tensors["encoder.conv_out.weight"].shape[0] // 2,
            "use_quant_conv": "quant_conv.weight" in tensors,
            "use_post_quant_conv": "post_quant_conv.weight" in tensors,
            "mid_block_add_attention": any("encoder.mid_block.attentions." in name for name in tensors),
        }
    except (KeyError, IndexError) as problem:
        raise CheckpointError(f"these are no tensors of an AutoencoderKL; missing: {problem.args[0]!s:.100}") from None


def own_settings(source: str | Path) -> dict[str, Any]:
    """The `config.json` of a VAE in diffusers' layout.

    Args:
        source: folder or hub id.

    Raises:
        CheckpointError: if there is none.
    """
    return read_json(local_folder(source) / "config.json")


def load_vae(source: str | Path, *, sample_posterior: bool = False) -> Latents:
    """The latents of a published VAE, such as EPFL-VILAB/flextok_vae_c16, in evaluation mode.

    Args:
        source: folder or hub id, in the layout of diffusers' AutoencoderKL.
        sample_posterior: draw latents from their distribution instead of taking its mean.

    Raises:
        CheckpointError: if there is no such VAE, or its tensors do not fit its configuration.
        MissingExtra: if diffusers is not installed.
    """
    folder = local_folder(source)
    settings = {name: value for name, value in own_settings(folder).items() if not name.startswith("_diffusers")}
    weights = Weights(folder)
    state = {current_name(name): tensor for name, tensor in weights.read().items()}
    found = settings_of(state)
    try:
        config = LatentsConfig(
            kind="diffusers",
            stride=2 ** (len(settings.get("block_out_channels") or found["block_out_channels"]) - 1),
            channels=settings.get("latent_channels") or found["latent_channels"],
            sample_posterior=sample_posterior,
            diffusers={**found, **settings},
        )
        latents = Latents(config)
    except ConfigError as problem:
        raise CheckpointError(f"{source}: no VAE can be made of its config.json: {problem}") from None
    ours = {mine + name.removeprefix(theirs): tensor for name, tensor in state.items() for mine, theirs in NAMES.items()
            if name.startswith(theirs)}  # fmt: skip
    load_strictly(latents, {**ours, "encoder.scale": latents.encoder.scale}, what=f"the VAE of {source}")
    return latents.eval()
