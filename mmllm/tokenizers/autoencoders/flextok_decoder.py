"""FlexTok's decoder: the velocity that carries noise to the latents of a picture, given its first codes.

B images, K channels of a latent, Y X its rows and columns, R S rows and columns of patches, T registers, C width,
D channels of a code
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn

from mmllm.errors import InputError
from mmllm.tokenizers.autoencoders.blocks import ModulatedBlock, normalised
from mmllm.tokenizers.autoencoders.flextok_config import FlexTokDecoderConfig
from mmllm.tokenizers.autoencoders.patches import PatchEmbedding, from_patches


class TimeEmbedding(nn.Module):
    """A time from 0 to 1 as a vector. The lowest frequency is 1/256 of the highest, not 1/10000 as usual."""

    def __init__(self, width: int, *, frequencies: int, max_time: float) -> None:
        super().__init__()
        self.frequencies, self.max_time = frequencies, max_time
        self.first, self.second = nn.Linear(frequencies, width), nn.Linear(width, width)

    def forward(self, time: Tensor) -> Tensor:
        """Times B -> B C."""
        half = self.frequencies // 2
        frequency = torch.exp(-math.log(256) * torch.arange(half, device=time.device, dtype=torch.float32) / half)
        angle = (time.float() * (1000 / self.max_time)).unsqueeze(-1) * frequency
        waves = torch.cat([angle.cos(), angle.sin()], dim=-1).to(self.first.weight.dtype)
        return self.second(nn.functional.silu(self.first(waves)))


class VelocityHead(nn.Module):
    """The velocity of each patch, from its hidden state shifted and scaled by the time."""

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 2 * width)
        self.project = nn.Linear(width, out_width)

    def forward(self, hidden: Tensor, time: Tensor) -> Tensor:
        """Hidden states B L C and embedded times B C -> B L (P P K)."""
        shift, scale = self.modulation(nn.functional.silu(time)).unsqueeze(1).chunk(2, dim=-1)
        return self.project(normalised(hidden) * (1 + scale) + shift)


class FlexTokDecoder(nn.Module):
    """A transformer over noised patches and registers, modulated by the time."""

    def __init__(self, config: FlexTokDecoderConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.codes = nn.Linear(config.code_width, width)
        # as large as the codes: small ones leave a set of tokens whose members cannot be told apart, and later tokens
        # are then not used for thousands of steps
        self.positions = nn.Parameter(torch.randn(config.registers, width))
        self.dropped = nn.Parameter(torch.randn(width) * 0.02)
        """Takes the place of registers that are left out. It has no position."""
        self.unconditional = nn.Parameter(torch.randn(width) * 0.02)
        """Takes the place of all registers where guidance asks for no picture in particular."""
        self.patches = PatchEmbedding(config.channels, width, patch_size=config.patch_size, grid=config.grid)
        self.time = TimeEmbedding(width, frequencies=config.frequencies, max_time=config.max_time)
        self.blocks = nn.ModuleList(
            ModulatedBlock(width, head_width=config.head_width, groups=2) for _ in range(config.layers)
        )
        self.head = VelocityHead(width, config.patch_size**2 * config.channels)
        # adaLN-zero: every block begins as the identity, and the velocity as zero
        for name, weight in self.named_parameters():
            if ".modulation." in name or name.startswith("head."):
                nn.init.zeros_(weight)

    def forward(
        self,
        noised: Tensor,
        time: Tensor,
        codes: Tensor,
        *,
        kept: Tensor | None = None,
        unconditional: Tensor | None = None,
    ) -> Tensor:
        """The velocity, from picture to noise: B K Y X.

        Args:
            noised: B K Y X.
            time: B; 0 is the picture, 1 is noise.
            codes: B T D, of all T registers; those that are not kept may hold anything.
            kept: int64, B: how many of the first registers are read, 1 to T; None for all.
            unconditional: bool, B: where no register is read at all; None for nowhere.

        Raises:
            InputError: for another number of registers or channels, or a number kept that is not 1 to T.
        """
        registers = self.registers(codes, kept, unconditional)
        patches = self.patches(noised)  # B R S C
        rows, columns = patches.shape[1:3]
        hidden = torch.cat([rearrange(patches, "b r s c -> b (r s) c"), registers], dim=1)
        embedded_time = self.time(time)
        for block in self.blocks:
            hidden = block(hidden, embedded_time, (rows * columns, self.config.registers))
        velocity = self.head(hidden[:, : rows * columns], embedded_time)
        return from_patches(rearrange(velocity, "b (r s) k -> b r s k", r=rows), self.config.patch_size)

    def registers(self, codes: Tensor, kept: Tensor | None, unconditional: Tensor | None) -> Tensor:
        """What the blocks read in the place of the registers, B T C; arguments and errors as for `forward`."""
        count = self.config.registers
        if codes.ndim != 3 or codes.shape[1:] != (count, self.config.code_width):
            raise InputError(f"codes must be (B {count} {self.config.code_width}), not {tuple(codes.shape)}")
        registers = self.codes(codes.to(self.codes.weight.dtype)) + self.positions
        if kept is not None:
            if kept.numel() and not 1 <= int(kept.min()) <= int(kept.max()) <= count:
                raise InputError(f"kept must be 1 to {count} registers, not {kept.tolist()}")
            left_out = torch.arange(count, device=kept.device) >= kept.unsqueeze(-1)  # B T
            registers = torch.where(left_out.unsqueeze(-1), self.dropped, registers)
        if unconditional is not None:
            registers = torch.where(rearrange(unconditional, "b -> b 1 1"), self.unconditional, registers)
        return registers
