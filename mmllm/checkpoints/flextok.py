"""The published FlexTok: `config.json` with classes of the original, `model.safetensors` with VAE, encoder and decoder.

The configuration may also stand in the metadata of the safetensors file alone. It is data: no class that it names is
imported. Tensors are found by the places of the modules in the configuration, and all of them must be used.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mmllm.checkpoints.diffusers_vae import NAMES as VAE_NAMES
from mmllm.checkpoints.diffusers_vae import current_name, own_settings, settings_of
from mmllm.checkpoints.flextok_config import (
    DecoderHalf,
    EncoderHalf,
    decoder_half,
    encoder_half,
    levels_of,
    ours_of,
    training_times,
)
from mmllm.checkpoints.flextok_layout import Layout, published_config, weights_file
from mmllm.checkpoints.flextok_modules import check_targets, section
from mmllm.checkpoints.weights import header
from mmllm.errors import CheckpointError, ConfigError
from mmllm.modeling.tower import load_strictly
from mmllm.tokenizers.autoencoders.flextok import FlexTok, FlexTokConfig
from mmllm.tokenizers.autoencoders.flextok_decoder import FlexTokDecoder
from mmllm.tokenizers.autoencoders.flextok_encoder import FlexTokEncoder
from mmllm.tokenizers.autoencoders.latents import LatentsConfig
from mmllm.tokenizers.flextok import FlexTokFrames

Part = TypeVar("Part", bound=nn.Module)
_VAE = "vae.vae."
_WHAT = "the published FlexTok"


def load_flextok(source: str | Path, *, sample_posterior: bool = False) -> FlexTok:
    """A published FlexTok, in evaluation mode and in float32.

    Args:
        source: folder, hub id, preset or safetensors file.
        sample_posterior: draw latents from their distribution, as the original does; otherwise the ids of a picture
            are always the same.

    Raises:
        CheckpointError: if there is no such FlexTok, or its tensors and its configuration do not fit each other.
        MissingExtra: if diffusers is not installed.
    """
    file = weights_file(source)
    meta, published = header(file), published_config(file)
    check_targets(published)
    encoder, decoder = encoder_half(published, meta), decoder_half(published, meta)
    latents = _latents(published, meta, sample_posterior=sample_posterior)
    config = _config(published, encoder, decoder, latents)
    layout = _layout(encoder, decoder, latents)
    try:
        with torch.device("meta"):
            model = FlexTok(config)
    except (ConfigError, RuntimeError) as problem:
        raise CheckpointError(f"the published configuration describes no FlexTok: {problem!s:.300}") from None
    what = f"{_WHAT} of {source}"
    layout.check(model, meta, what=what)  # before any number is read
    return _filled(model, layout, load_file(file), what=what)


def _filled(module: Part, layout: Layout, tensors: Mapping[str, Tensor], *, what: str) -> Part:
    """A module without storage with copies of the tensors, in float32 and in evaluation mode."""
    layout.check(module, tensors, what=what)
    state = {name: torch.empty(tensor.shape).copy_(tensor) for name, tensor in layout.ours(tensors).items()}
    module.load_state_dict(state, strict=True, assign=True)
    return module.eval()


def load_encoder(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> FlexTokEncoder:
    """The encoder of a published configuration, in evaluation mode: latents to what is quantised.

    Args:
        config: a published configuration; its section `encoder` is read.
        tensors: all tensors of the encoder (`encoder.*`), under their published names.

    Raises:
        CheckpointError: as for `load_flextok`.
    """
    half = encoder_half(config, tensors)
    with torch.device("meta"):
        encoder = FlexTokEncoder(half.config)
    return _filled(encoder, Layout(names=half.names), tensors, what=f"the encoder of {_WHAT}")


def load_decoder(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> FlexTokDecoder:
    """The decoder of a published configuration; arguments and errors as for `load_encoder`."""
    half = decoder_half(config, tensors)
    constants = {} if half.has_null else {"unconditional": torch.zeros(half.config.width)}
    with torch.device("meta"):
        decoder = FlexTokDecoder(half.config)
    layout = Layout(names=half.names, left_out=half.left_out, constants=constants)
    return _filled(decoder, layout, tensors, what=f"the decoder of {_WHAT}")


def load_published_encoder(encoder: FlexTokFrames, source: str | Path) -> None:
    """Loads the encoder half of a published FlexTok, and its VAE's, into the encoder of a model.

    Raises:
        CheckpointError: as for `load_flextok`, or if the encoder has other sizes or levels.
    """
    file = weights_file(source)
    meta, published = header(file), published_config(file)
    if encoder.config.latents != "diffusers":
        raise CheckpointError(f"{source}: the encoder of a published FlexTok needs latents=diffusers")
    levels = levels_of(published)
    if tuple(encoder.config.levels) != levels:
        raise CheckpointError(f"{source} has levels {list(levels)}, the encoder {list(encoder.config.levels)}")
    half, latents = encoder_half(published, meta), _latents(published, meta, sample_posterior=False)
    layout = _layout(half, None, latents)
    used = {name: tensor for name, tensor in load_file(file).items() if name.startswith(tuple(layout.names.values()))}
    state = {
        name.replace("latents.encoder.", "latent_encoder.", 1): tensor for name, tensor in layout.ours(used).items()
    }
    own = {name: tensor for name, tensor in encoder.state_dict().items() if name.startswith("id_embeddings.")}
    load_strictly(encoder, {**own, **state}, what=f"the encoder half of {source}")


def _latents(config: Mapping[str, Any], tensors: Mapping[str, Tensor], *, sample_posterior: bool) -> LatentsConfig:
    """The VAE: its sizes from its tensors, its scale from the configuration.

    Raises:
        CheckpointError: if the file has no VAE, or neither its configuration nor the VAE's own has the scale.
    """
    vae = section(config, "vae")
    own = {current_name(name).removeprefix(_VAE): tensor for name, tensor in tensors.items() if name.startswith(_VAE)}
    settings = settings_of(own)
    channels, scale = settings["latent_channels"], vae.value("scaling_factor", None)
    if vae.value("latent_channels", channels) != channels:
        raise CheckpointError(
            f"vae.latent_channels = {vae.value('latent_channels')!r:.40}, and its tensors have {channels}"
        )
    if scale is None and vae.value("hf_hub_path", None) is not None:
        published = own_settings(str(vae.value("hf_hub_path")))
        scale, settings["norm_num_groups"] = published.get("scaling_factor"), published.get("norm_num_groups", 32)
    if scale is None:
        raise CheckpointError("vae has no scaling_factor, and hf_hub_path names no VAE that has one")
    fields = {
        "kind": "diffusers",
        "stride": 2 ** (len(settings["block_out_channels"]) - 1),
        "channels": channels,
        "sample_posterior": sample_posterior,
        "diffusers": {**settings, "scaling_factor": scale},
    }
    return ours_of(LatentsConfig, fields)


def _config(
    published: Mapping[str, Any], encoder: EncoderHalf, decoder: DecoderHalf, latents: LatentsConfig
) -> FlexTokConfig:
    fields = {
        "image_size": encoder.config.grid[0] * encoder.config.patch_size * latents.stride,
        "latents": latents,
        "levels": levels_of(published),
        "encoder": encoder.config,
        "decoder": decoder.config,
        "kept": decoder.kept,
        "times": training_times(published),
        "unconditional": decoder.unconditional,
    }
    return ours_of(FlexTokConfig, fields)


def _layout(encoder: EncoderHalf, decoder: DecoderHalf | None, latents: LatentsConfig | None) -> Layout:
    """Names of the tensors of those parts that are given."""
    names = {f"encoder.{ours}": theirs for ours, theirs in encoder.names.items()}
    constants, left_out = {}, ["vae.logvar"]
    if latents is not None:
        halves = [ours for ours in VAE_NAMES if decoder is not None or ours.startswith("encoder.")]
        names |= {f"latents.{ours}": _VAE + VAE_NAMES[ours] for ours in halves}
        constants["latents.encoder.scale"] = torch.tensor(latents.kl.scale)
    if decoder is not None:
        names |= {f"decoder.{ours}": theirs for ours, theirs in decoder.names.items()}
        left_out += decoder.left_out
        if not decoder.has_null:
            constants["decoder.unconditional"] = torch.zeros(decoder.config.width)
    return Layout(names=names, left_out=tuple(left_out), constants=constants)
