"""FlexTok in front of the LLM: each frame as the first of its ordered 1D tokens. Only the encoder half is built.

    frames -> latents -> registers -> features, or quantised codes, or embeddings of the ids

B videos, T frames, F frames run at once, N tokens of a frame, C width of a token, S side in pixels
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from mmllm.fields import require
from mmllm.modeling.tower import load_strictly
from mmllm.preprocessing.frames import FrameTransform
from mmllm.registry import register
from mmllm.tokenizers.autoencoders.flextok_config import FlexTokEncoderConfig
from mmllm.tokenizers.autoencoders.flextok_encoder import FlexTokEncoder
from mmllm.tokenizers.autoencoders.fsq import FiniteScalarQuantizer
from mmllm.tokenizers.autoencoders.latents import LatentEncoder, LatentsConfig
from mmllm.tokenizers.frame_tokens import FrameTokens, from_minus_one_to_one


@dataclass(frozen=True, kw_only=True)
class FlexTokFramesConfig:
    """FlexTok's encoder half; the defaults are the sizes of the smallest published one (d12-d12)."""

    tokens: int = 256
    """Tokens of a frame: how many of the first registers are computed."""
    source: Literal["features", "codes", "ids"] = "features"
    """`features`: the registers before they are quantised. `codes`: the quantised values, a few numbers a token.
    `ids`: one embedding for each level of each channel, added up."""
    image_size: int = 256
    """Side of the square frame in pixels."""
    latents: Literal["pixels", "vae", "diffusers"] = "vae"
    """`pixels`: squares of pixels as channels. `vae`: the small convolutional autoencoder. `diffusers`: the
    AutoencoderKL of published tokenizers; needs the extra `diffusers`."""
    stride: int = 8
    """Pixels of a latent's side."""
    channels: int = 16
    """Channels of the latents of a VAE."""
    latent_width: int = 64
    """Channels inside the `vae`."""
    sample_posterior: bool = False
    """Draw the latents of a VAE from their distribution instead of taking its mean."""
    diffusers: dict[str, Any] = field(default_factory=dict)
    """Settings of diffusers' AutoencoderKL, as in its config.json; FlexTok's sizes where they are not given."""
    patch_size: int = 2
    """Side of a patch, in pixels of the latents."""
    registers: int = 256
    """Most tokens of a frame."""
    layers: int = 12
    width: int = 768
    head_width: int = 64
    levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)
    """Levels of each channel of a code."""
    id_width: int = 768
    """Width of the embeddings of `ids`."""
    chunk: int = 16
    """Most frames run at once; bounds the memory."""

    def __post_init__(self) -> None:
        require(1 <= self.tokens <= self.registers, self, "tokens", f"1 to registers = {self.registers}")
        require(self.chunk > 0, self, "chunk", "positive")
        require(self.id_width > 0, self, "id_width", "positive")
        patch = self.patch_size * self.stride
        divisible = patch > 0 and self.image_size > 0 and self.image_size % patch == 0
        require(divisible, self, "image_size", f"a positive multiple of patch_size * stride = {patch}")
        self.encoder_config()

    def latents_config(self) -> LatentsConfig:
        """What stands between pixels and latents."""
        return LatentsConfig(
            kind=self.latents,
            stride=self.stride,
            channels=self.channels,
            width=self.latent_width,
            sample_posterior=self.sample_posterior,
            diffusers=self.diffusers,
        )

    def encoder_config(self) -> FlexTokEncoderConfig:
        """The register encoder."""
        side = self.image_size // (self.patch_size * self.stride)
        return FlexTokEncoderConfig(
            channels=self.latents_config().latent_channels,
            patch_size=self.patch_size,
            grid=(side, side),
            registers=self.registers,
            layers=self.layers,
            width=self.width,
            head_width=self.head_width,
            code_width=len(self.levels),
        )

    @property
    def frames(self) -> FrameTransform:
        """How frames are prepared for this encoder: from -1 to 1."""
        return from_minus_one_to_one(self.image_size)


@register("encoder", "flextok", config=FlexTokFramesConfig)
class FlexTokFrames(FrameTokens):
    """Ordered 1D tokens of each frame, the coarse ones first (FlexTok)."""

    changeable_settings: ClassVar[tuple[str, ...]] = ("tokens",)

    def __init__(self, config: FlexTokFramesConfig) -> None:
        super().__init__()
        self.config = config
        self.quantizer = FiniteScalarQuantizer(config.levels)
        self.latent_encoder = LatentEncoder(config.latents_config())
        self.encoder = FlexTokEncoder(config.encoder_config())
        self.id_embeddings = (
            nn.ModuleList(nn.Embedding(count, config.id_width) for count in config.levels)
            if config.source == "ids"
            else None
        )
        self.width = {"features": config.width, "codes": len(config.levels), "ids": config.id_width}[config.source]

    def tokens(self, frames: Tensor) -> Tensor:
        """Tokens F N C of frames F 3 S S."""
        latents = self.latent_encoder(frames)
        if self.config.source == "features":
            return self.encoder.features(latents, self.config.tokens)
        codes = self.quantizer.quantize(self.encoder(latents, self.config.tokens))
        if self.id_embeddings is None:
            return codes.to(frames.dtype)
        levels = self.quantizer.levels_of(codes)
        return torch.stack([table(levels[..., channel]) for channel, table in enumerate(self.id_embeddings)]).sum(0)


def load_flextok_encoder(encoder: FlexTokFrames, state: Mapping[str, Tensor]) -> None:
    """Loads the encoder half of a FlexTok that `mmllm train-tokenizer` has trained; the decoder's half is left out.

    The embeddings of `ids` are no part of it: they are trained with the LLM.

    Raises:
        CheckpointError: if a tensor of the half is missing, unknown or of another shape.
    """
    half = {name: value for name, value in state.items() if name.startswith("encoder.")}
    latents = {name: value for name, value in state.items() if name.startswith("latents.encoder.")}
    half |= {name.replace("latents.encoder.", "latent_encoder.", 1): value for name, value in latents.items()}
    own = {name: value for name, value in encoder.state_dict().items() if name.startswith("id_embeddings.")}
    load_strictly(encoder, {**own, **half}, what="FlexTok's encoder half")
