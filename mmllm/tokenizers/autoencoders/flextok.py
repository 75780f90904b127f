"""FlexTok as an autoencoder: a picture to 1 to 256 ids, the coarse ones first, and any prefix of them to a picture.

    images -> latents -> register encoder -> quantizer -> ids
    ids -> codes -> decoder, in steps from noise -> latents -> images

B images, K channels of a latent, Y X rows and columns, T registers, D channels of a code
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mmllm.errors import InputError
from mmllm.fields import require
from mmllm.interfaces import Autoencoder
from mmllm.registry import register
from mmllm.tokenizers.autoencoders import rectified_flow
from mmllm.tokenizers.autoencoders.flextok_config import FlexTokDecoderConfig, FlexTokEncoderConfig
from mmllm.tokenizers.autoencoders.flextok_decoder import FlexTokDecoder
from mmllm.tokenizers.autoencoders.flextok_encoder import FlexTokEncoder
from mmllm.tokenizers.autoencoders.fsq import FiniteScalarQuantizer
from mmllm.tokenizers.autoencoders.latents import Latents, LatentsConfig
from mmllm.tokenizers.autoencoders.rectified_flow import TrainingTimes


@dataclass(frozen=True, kw_only=True)
class FlexTokConfig:
    """A FlexTok; the defaults are the sizes of the smallest published one (d12-d12)."""

    image_size: int = 256
    """Side of the square picture in pixels."""
    latents: LatentsConfig = field(default_factory=LatentsConfig)
    levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)
    """Levels of each channel of a code."""
    encoder: FlexTokEncoderConfig = field(default_factory=FlexTokEncoderConfig)
    decoder: FlexTokDecoderConfig = field(default_factory=FlexTokDecoderConfig)
    kept: Literal["all", "uniform", "powers", "uniform_powers"] = "powers"
    """How many registers the decoder reads in training (nested dropout); `all` is without it."""
    times: TrainingTimes = field(default_factory=lambda: TrainingTimes(density="mode"))
    """How the times of a training batch are drawn."""
    unconditional: float = 0.2
    """Share of training pictures whose registers are all left out, for guidance."""

    def __post_init__(self) -> None:
        for name in ("encoder", "decoder"):
            half = getattr(self, name)
            fits = (half.channels, half.code_width) == (self.latents.latent_channels, len(self.levels))
            both = f"{self.latents.latent_channels} channels and code_width {len(self.levels)}, as latents and levels"
            require(fits, self, name, both)
            side = half.grid[0] * half.patch_size * self.latents.stride
            require(half.grid[0] == half.grid[1] and side >= self.image_size, self, name, "a grid for the image_size")
        require(self.encoder.registers == self.decoder.registers, self, "decoder", "as many registers as the encoder")
        smallest = self.encoder.patch_size * self.latents.stride
        require(self.image_size % smallest == 0, self, "image_size", f"a multiple of {smallest}")
        require(0 <= self.unconditional < 1, self, "unconditional", "0 to below 1")


@register("autoencoder", "flextok", config=FlexTokConfig)
class FlexTok(Autoencoder):
    """Ordered discrete tokens, the coarse ones first; any number of them gives a picture (FlexTok)."""

    ordered: ClassVar[bool] = True

    def __init__(self, config: FlexTokConfig) -> None:
        super().__init__()
        self.config = config
        self.image_size, self.most_tokens = config.image_size, config.encoder.registers
        self.latents = Latents(config.latents)
        self.encoder, self.decoder = FlexTokEncoder(config.encoder), FlexTokDecoder(config.decoder)
        self.quantizer = FiniteScalarQuantizer(config.levels)

    def tokenize(self, images: Tensor, tokens: int | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Ids (int64, B T) of images (float, B 3 S S, from -1 to 1): all, or the first `tokens`.

        Args:
            images: float, B 3 S S.
            tokens: how many; None for all.
            generator: of the latents, where the configuration has them drawn (`latents.sample_posterior`).

        Raises:
            InputError: for images of another shape, type or range.
        """
        check_images(images, self.config.image_size)
        latents = self.latents.encode(images, generator)
        return self.quantizer.ids(self.quantizer.quantize(self.encoder(latents, tokens)))

    def detokenize(
        self,
        ids: Sequence[Tensor],
        *,
        steps: int = 25,
        guidance: rectified_flow.Guidance | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Images (B 3 S S, about -1 to 1, not clamped) of the first ids of each.

        Args:
            ids: integers, one row for each image (l, or 1 l as the original has it); rows may have different lengths.
            steps: Euler steps.
            guidance: None for none.
            generator: of the noise at which the decoder begins; without one, each call gives other details.

        Raises:
            InputError: for an empty row, one with too many ids, or an id that does not exist.
        """
        registers = self.config.decoder.registers
        ids = [row[0] if row.ndim == 2 and len(row) == 1 else row for row in ids]
        for row in ids:
            if row.ndim != 1 or not 1 <= len(row) <= registers:
                raise InputError(f"a picture has 1 to {registers} ids in one row, not the shape {tuple(row.shape)}")
        device = self.decoder.positions.device
        codes = torch.zeros(len(ids), registers, len(self.config.levels), device=device)
        for number, row in enumerate(ids):
            codes[number, : len(row)] = self.quantizer.codes(row.to(device))
        kept = torch.tensor([len(row) for row in ids], device=device)
        side = self.config.image_size // self.config.latents.stride
        noise = torch.randn(len(ids), self.config.decoder.channels, side, side, generator=generator).to(device)

        def velocity(noised: Tensor, time: Tensor, conditional: bool) -> Tensor:
            nothing = None if conditional else torch.ones_like(kept, dtype=torch.bool)
            return self.decoder(noised, time, codes, kept=kept, unconditional=nothing)

        with torch.no_grad():
            return self.latents.decode(rectified_flow.sample(velocity, noise, steps=steps, guidance=guidance))

    @torch.no_grad()
    def reconstruct(
        self,
        images: Tensor,
        *,
        tokens: int | None = None,
        generator: torch.Generator | None = None,
        steps: int = 25,
        guidance: rectified_flow.Guidance | None = None,
    ) -> Tensor:
        """Images of the first `tokens` ids of each image; see `Autoencoder` and `detokenize`."""
        ids = list(self.tokenize(images, tokens, generator))
        return self.detokenize(ids, steps=steps, guidance=guidance, generator=generator)

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The loss of a training step: the squared error of the velocity at a drawn time, from a drawn prefix of codes.

        The autoencoder of the latents gets no gradient; it is trained before.

        Args:
            images: float, B 3 S S, from -1 to 1.
            generator: of all random numbers, on the CPU; None for PyTorch's own.
        """
        check_images(images, self.config.image_size)
        with torch.no_grad():
            latents = self.latents.encode(images, generator)
        codes = self.quantizer.quantize(self.encoder(latents))
        count, device, registers = len(images), images.device, self.config.decoder.registers
        times = self.config.times.draw(count, generator).to(device)
        noise = torch.randn(latents.shape, generator=generator).to(device)
        left_out = (torch.rand(count, generator=generator) < self.config.unconditional).to(device)
        kept = None
        if self.config.kept != "all":
            kept = rectified_flow.lengths(self.config.kept, count, registers, generator).to(device)
        noised = rectified_flow.noised(latents, noise, times)
        velocity = self.decoder(noised, times, codes, kept=kept, unconditional=left_out)
        return rectified_flow.velocity_loss(velocity, latents, noise)


def check_images(images: Tensor, size: int) -> None:
    """Refuses images that a tokenizer cannot read.

    Raises:
        InputError: for another shape than B 3 S S, values that are not floating point or finite, or values more than
            1 % outside of -1 to 1.
    """
    if images.ndim != 4 or tuple(images.shape[1:]) != (3, size, size):
        raise InputError(f"images must be (B 3 {size} {size}), not {tuple(images.shape)}")
    if not images.is_floating_point():
        raise InputError(f"images must be floating point, from -1 to 1, not {images.dtype}: prepare them first")
    if images.numel() and not bool(images.isfinite().all()):
        raise InputError("images must be finite, and some of these are infinite or NaN")
    if images.numel() and float(images.abs().max()) > 1.01:
        raise InputError(f"images must be from -1 to 1; the largest value is {float(images.abs().max()):.3g}")
