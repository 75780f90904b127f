"""REPA: patch features inside FlexTok's decoder are drawn towards those of a frozen vision encoder (arXiv 2410.06940).

The encoder and the projector between both widths are needed in training only; a saved tokenizer has neither.

B images, S side in pixels, L positions of the decoder (patches, then registers), C width, R S rows and columns of
patches
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from mmllm import registry
from mmllm.checkpoints.towers import load_tower
from mmllm.errors import ConfigError
from mmllm.fields import require
from mmllm.tokenizers.autoencoders.flextok import FlexTok


@dataclass(frozen=True, kw_only=True)
class RepaConfig:
    """The vision encoder, and what is aligned with it. The defaults are DINOv2-L and a reimplementation's numbers."""

    weight: float = 1.0
    encoder: str | dict[str, Any] = "dinov2:image_size=518,width=1024,layers=24,heads=16,mlp_width=4096,gated=false"
    """An encoder of mmllm with a grid of patches, one of `mmllm list encoders`."""
    source: str = "facebook/dinov2-large"
    """Folder or hub id of its weights."""
    block: int = 1
    """Number of the decoder's block, from 0, whose output is aligned."""
    grid: int | None = 37
    """Side of the grid that both features are resampled to; None for the grid of the decoder's patches."""
    hidden_width: int = 2048
    """Width between the layers of the projector."""

    def __post_init__(self) -> None:
        require(self.weight > 0, self, "weight", "above zero; leave `repa` out to train without it")
        require(self.block >= 0, self, "block", "zero or more")
        require(self.grid is None or self.grid > 0, self, "grid", "positive")
        require(self.hidden_width > 0, self, "hidden_width", "positive")
        registry.config_of("encoder", self.encoder)


class Teacher:
    """A frozen vision encoder. No module: its weights are neither trained nor saved.

    Raises:
        ConfigError: if the encoder has no grid of patches, or there are no weights for it.
        CheckpointError: if the weights cannot be found or do not fit.
    """

    def __init__(self, config: RepaConfig) -> None:
        self.config = config
        encoder = registry.build("encoder", config.encoder)
        if encoder.grid is None:
            raise ConfigError(
                f"RepaConfig.encoder = {config.encoder}: gives 1D tokens, and REPA needs a grid of patches"
            )
        if encoder.load_pretrained is not None:
            encoder.load_pretrained(config.source)
        else:
            load_tower(encoder, config.source)
        self.encoder = encoder.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Patch features, B C R S, of images (B 3 S S) from -1 to 1."""
        self.encoder = self.encoder.to(images.device)
        frames = self.encoder.config.frames
        pixels = nn.functional.interpolate(
            images.float() / 2 + 0.5, size=(frames.size, frames.size), mode="bicubic", antialias=True
        )
        mean, std = (torch.tensor(values).view(3, 1, 1).to(pixels) for values in (frames.mean, frames.std))
        features = self.encoder(rearrange((pixels.clamp(0, 1) - mean) / std, "b k y x -> b 1 k y x")).features
        return rearrange(features, "b 1 (r s) c -> b c r s", r=self.encoder.grid[0])


class Repa(nn.Module):
    """The projector from the decoder's width to the encoder's, and the loss."""

    def __init__(self, teacher: Teacher, model: FlexTok) -> None:
        super().__init__()
        self.config, self.teacher = teacher.config, teacher
        self.rows = model.config.image_size // (model.config.latents.stride * model.config.decoder.patch_size)
        width, hidden = model.config.decoder.width, self.config.hidden_width
        self.projector = nn.Sequential(
            nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(),
            nn.Linear(hidden, self.teacher.encoder.width),
        )  # fmt: skip

    @contextmanager
    def reading(self, model: FlexTok) -> Iterator[list[Tensor]]:
        """A list that gets the output of the block, B L C, each time the decoder runs."""
        hidden: list[Tensor] = []
        block = model.decoder.blocks[self.config.block]
        handle = block.register_forward_hook(lambda *arguments: hidden.append(arguments[-1]))
        try:
            yield hidden
        finally:
            handle.remove()

    def forward(self, hidden: Tensor, images: Tensor) -> Tensor:
        """One minus the cosine between both features, mean over places: a scalar, with its weight.

        Args:
            hidden: B L C: output of the decoder's block.
            images: float, B 3 S S, from -1 to 1.
        """
        patches = self.projector(hidden[:, : self.rows**2])
        ours = rearrange(patches, "b (r s) c -> b c r s", r=self.rows)
        size = (self.config.grid or self.rows,) * 2
        ours, theirs = (
            nn.functional.interpolate(features.float(), size=size, mode="bilinear")
            for features in (ours, self.teacher(images))
        )
        return self.config.weight * (1 - nn.functional.cosine_similarity(ours, theirs, dim=1)).mean()


def check_repa(config: RepaConfig, model: Any) -> None:
    """Refuses a tokenizer that cannot be aligned.

    Raises:
        ConfigError: naming what is missing.
    """
    if not isinstance(model, FlexTok):
        raise ConfigError(f"repa aligns the decoder of a FlexTok, and {type(model).__name__} has none: leave it out")
    blocks = len(model.decoder.blocks)
    require(config.block < blocks, config, "block", f"below the number of blocks of the decoder, {blocks}")
