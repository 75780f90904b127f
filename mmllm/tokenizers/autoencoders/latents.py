"""From pictures to the latents that a tokenizer reads and writes, and back.

B images, K channels of a latent, Y X rows and columns of pixels, y x rows and columns of latents
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from mmllm.fields import require
from mmllm.interfaces import TrainingPass
from mmllm.tokenizers.autoencoders.kl_autoencoder import KlDecoder, KlEncoder, KlSettings


@dataclass(frozen=True, kw_only=True)
class LatentsConfig:
    """What stands between pixels and latents."""

    kind: Literal["pixels", "vae", "diffusers"] = "vae"
    """`pixels`: the pixels of a square as channels, without weights. `vae`: a small convolutional autoencoder.
    `diffusers`: an AutoencoderKL, as published tokenizers have it; needs the extra `diffusers`."""
    stride: int = 8
    """Pixels of a latent's side: a power of two."""
    channels: int = 16
    """Channels of a latent of a VAE; `pixels` has 3 for each pixel of a square."""
    width: int = 64
    """Channels inside the `vae`, at full size; they double with each halving, up to four times as many."""
    kl_weight: float = 1e-6
    """Weight of the divergence from a normal distribution, in the training of the `vae`."""

    sample_posterior: bool = False
    """Draw the latents of a VAE from their distribution, so that each call gives others, instead of its mean."""
    diffusers: dict[str, Any] = field(default_factory=dict)
    """Settings of diffusers' AutoencoderKL, as in its config.json; FlexTok's sizes where they are not given."""

    def __post_init__(self) -> None:
        require(self.kind in ("pixels", "vae", "diffusers"), self, "kind", "pixels, vae or diffusers")
        require(self.stride >= 1 and self.stride & (self.stride - 1) == 0, self, "stride", "a power of two")
        require(self.channels > 0, self, "channels", "positive")
        require(self.width > 0 and self.width % 8 == 0, self, "width", "a positive multiple of 8")
        require(0 <= self.kl_weight < math.inf, self, "kl_weight", "zero or more")
        if self.kind == "diffusers":
            kl = self.kl
            require(self.stride == kl.stride, self, "stride", f"{kl.stride}, as the AutoencoderKL has it")
            require(self.channels == kl.channels, self, "channels", f"{kl.channels}, as the AutoencoderKL has it")

    @cached_property
    def kl(self) -> KlSettings:
        """The settings of the AutoencoderKL."""
        return KlSettings(self.diffusers, channels=self.channels)

    @property
    def latent_channels(self) -> int:
        """K."""
        return 3 * self.stride**2 if self.kind == "pixels" else self.channels


class LatentEncoder(nn.Module):
    """Pictures to latents."""

    scale: Tensor
    """Scalar. Latents are multiplied by it, so that their standard deviation is about 1."""

    def __init__(self, config: LatentsConfig) -> None:
        super().__init__()
        self.config = config
        self.net: nn.Module | None = None
        if config.kind != "pixels":
            self.net = KlEncoder(config.kl) if config.kind == "diffusers" else _downwards(config)
        self.register_buffer("scale", torch.tensor(config.kl.scale if config.kind == "diffusers" else 1.0))
        self.shift = config.kl.shift if config.kind == "diffusers" else 0.0
        """Is taken away from latents before they are scaled."""

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance of the latents (B K y x each), not yet scaled."""
        if self.net is None:
            mean = rearrange(images, "b c (y p) (x q) -> b (c p q) y x", p=self.config.stride, q=self.config.stride)
            return mean, torch.full_like(mean, -torch.inf)
        mean, log_variance = self.net(images).chunk(2, dim=1)
        return mean, log_variance.clamp(-30, 20)

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The scaled latents, B K y x, of images B 3 Y X from -1 to 1: means, or drawn if the configuration says so.

        Args:
            images: float, B 3 Y X.
            generator: of drawn latents, on the CPU; None for PyTorch's own.
        """
        latents, log_variance = self.moments(images)
        if self.config.sample_posterior:
            noise = torch.randn(latents.shape, generator=generator).to(latents)
            latents = latents + noise * (log_variance / 2).exp()
        return (latents - self.shift) * self.scale


class Latents(nn.Module):
    """Pictures to latents and back: an autoencoder that is trained before the tokenizer and frozen then."""

    def __init__(self, config: LatentsConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = LatentEncoder(config)
        self.decoder: nn.Module | None = None
        if config.kind != "pixels":
            self.decoder = KlDecoder(config.kl) if config.kind == "diffusers" else _upwards(config)

    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Scaled latents B K y x of images B 3 Y X from -1 to 1; see `LatentEncoder`."""
        return self.encoder(images, generator)

    def decode(self, latents: Tensor) -> Tensor:
        """Images B 3 Y X, about -1 to 1 and not clamped, of scaled latents B K y x."""
        latents = latents / self.encoder.scale + self.encoder.shift
        if self.decoder is None:
            return rearrange(latents, "b (c p q) y x -> b c (y p) (x q)", p=self.config.stride, q=self.config.stride)
        return self.decoder(latents)

    def forward(self, images: Tensor) -> Tensor:
        """The loss of a training step: squared error of pixels, and a weak pull towards a normal distribution."""
        made = self.training_pass(images)
        assert made.images is not None
        return nn.functional.mse_loss(made.images, images) + made.losses["divergence"]

    def training_pass(self, images: Tensor) -> TrainingPass:
        """The reconstruction from drawn latents, and the pull; see `Autoencoder.training_pass`."""
        mean, log_variance = self.encoder.moments(images)
        drawn = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
        losses = {"divergence": self.config.kl_weight * divergence}
        return TrainingPass(losses, self.decode((drawn - self.encoder.shift) * self.encoder.scale))

    @torch.no_grad()
    def measure_scale(self, images: Tensor) -> None:
        """Sets the scale from the spread of the latents of these images (B 3 Y X)."""
        self.encoder.scale.fill_(1 / self.encoder.moments(images)[0].std().clamp(min=1e-6))


def _widths(config: LatentsConfig) -> list[int]:
    """Channels at full size and after each halving."""
    return [config.width * min(2**step, 4) for step in range(config.stride.bit_length())]


def _layer(channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.GroupNorm(8, channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, stride=stride, padding=1)
    )


def _downwards(config: LatentsConfig) -> nn.Sequential:
    widths = _widths(config)
    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, padding=1), _layer(widths[0], widths[0])]
    for width, next_width in itertools.pairwise(widths):
        layers += [_layer(width, next_width, stride=2), _layer(next_width, next_width)]
    return nn.Sequential(*layers, _layer(widths[-1], 2 * config.channels))


def _upwards(config: LatentsConfig) -> nn.Sequential:
    widths = _widths(config)[::-1]
    layers: list[nn.Module] = [nn.Conv2d(config.channels, widths[0], 3, padding=1), _layer(widths[0], widths[0])]
    for width, next_width in itertools.pairwise(widths):
        layers += [nn.Upsample(scale_factor=2), _layer(width, next_width), _layer(next_width, next_width)]
    return nn.Sequential(*layers, _layer(widths[-1], 3))
