"""FlexTok's encoder: registers read a picture's latents, and each register sees only those before it.

B images, K channels of a latent, Y X its rows and columns, N patches, R registers, C width, D channels of a code
"""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from mmllm.errors import InputError
from mmllm.tokenizers.autoencoders.blocks import Block, normalised
from mmllm.tokenizers.autoencoders.flextok_config import FlexTokEncoderConfig
from mmllm.tokenizers.autoencoders.patches import PatchEmbedding


class FlexTokEncoder(nn.Module):
    """Latents to register features and to the values that are quantised."""

    def __init__(self, config: FlexTokEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.patches = PatchEmbedding(config.channels, config.width, patch_size=config.patch_size, grid=config.grid)
        self.registers = nn.Parameter(torch.randn(config.registers, config.width) * 0.02)
        self.blocks = nn.ModuleList(Block(config.width, head_width=config.head_width) for _ in range(config.layers))
        self.head = nn.Linear(config.width, config.code_width)

    def features(self, latents: Tensor, tokens: int | None = None) -> Tensor:
        """Features of the first registers, before the head: B R C.

        Later registers do not change earlier ones, so that fewer `tokens` give the same features in less time.

        Args:
            latents: B K Y X, scaled as the decoder reads them.
            tokens: how many registers; None for all.

        Raises:
            InputError: for latents of another shape, values that are not finite, or more tokens than registers.
        """
        tokens = self.config.registers if tokens is None else tokens
        if not 1 <= tokens <= self.config.registers:
            raise InputError(f"tokens must be 1 to {self.config.registers}, not {tokens}")
        if not bool(latents.isfinite().all()):
            raise InputError("latents must be finite, and some of these are infinite or NaN")
        patches = rearrange(self.patches(latents), "b r s c -> b (r s) c")
        registers = repeat(self.registers[:tokens], "r c -> b r c", b=len(latents)).to(patches.dtype)
        mask = registers_last(patches.shape[1], tokens, patches.device)
        hidden = torch.cat([patches, registers], dim=1)
        for block in self.blocks:
            hidden = block(hidden, mask)
        return hidden[:, patches.shape[1] :]

    def forward(self, latents: Tensor, tokens: int | None = None) -> Tensor:
        """The values that are quantised, float32, B R D; arguments and errors as for `features`."""
        return self.head(normalised(self.features(latents, tokens))).float()


def registers_last(patches: int, registers: int, device: torch.device) -> Tensor:
    """bool, N+R N+R: patches see patches; a register sees all patches, itself and the registers before it."""
    mask = torch.ones(patches + registers, patches + registers, dtype=torch.bool, device=device).tril()
    mask[:patches, :patches] = True
    return mask
