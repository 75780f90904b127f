"""Latents to patches and back, and where the patches are.

B images, K channels of a latent, Y X rows and columns of a latent, R S rows and columns of patches, P side of a patch,
C width
"""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from mmllm.errors import InputError


def to_patches(latents: Tensor, patch_size: int) -> Tensor:
    """Latents (B K Y X) as vectors of their patches, B R S (P P K): row in the patch, column, channel."""
    return rearrange(latents, "b k (r p) (s q) -> b r s (p q k)", p=patch_size, q=patch_size)


def from_patches(patches: Tensor, patch_size: int) -> Tensor:
    """Latents (B K Y X) of the vectors of their patches, B R S (P P K)."""
    return rearrange(patches, "b r s (p q k) -> b k (r p) (s q)", p=patch_size, q=patch_size)


def sincos_table(grid: tuple[int, int], width: int) -> Tensor:
    """float32, 1 C R S: sine and cosine of the row, then of the column, in C/4 frequencies each."""
    frequency = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    rows, columns = (
        rearrange(torch.arange(count, dtype=torch.float64), "n -> n 1") * frequency for count in grid
    )  # R C/4, S C/4
    row_part = repeat(torch.cat([rows.sin(), rows.cos()], dim=-1), "r c -> 1 c r s", s=grid[1])
    column_part = repeat(torch.cat([columns.sin(), columns.cos()], dim=-1), "s c -> 1 c r s", r=grid[0])
    return torch.cat([row_part, column_part], dim=1).float()


class PatchEmbedding(nn.Module):
    """Patches of latents, projected to the width, with their positions added. The positions are not trained."""

    def __init__(self, channels: int, width: int, *, patch_size: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.patch_size, self.channels, self.grid = patch_size, channels, grid
        self.project = nn.Linear(patch_size**2 * channels, width)
        self.positions = nn.Parameter(sincos_table(grid, width), requires_grad=False)

    def forward(self, latents: Tensor) -> Tensor:
        """Latents B K Y X -> B R S C. A smaller grid has the positions of the table's upper left corner.

        Raises:
            InputError: for another number of channels, sides that are no multiple of the patch's, or too large a grid.
        """
        if latents.ndim != 4 or latents.shape[1] != self.channels:
            raise InputError(f"latents must be (B {self.channels} Y X), not {tuple(latents.shape)}")
        rows, columns = (side // self.patch_size for side in latents.shape[-2:])
        multiple = (rows * self.patch_size, columns * self.patch_size) == tuple(latents.shape[-2:])
        if not (multiple and 1 <= rows <= self.grid[0] and 1 <= columns <= self.grid[1]):
            most = " x ".join(str(side * self.patch_size) for side in self.grid)
            raise InputError(
                f"latents must have sides of multiples of {self.patch_size}, at most {most}, not "
                f"{latents.shape[-2]} x {latents.shape[-1]}"
            )
        positions = rearrange(self.positions[..., :rows, :columns], "1 c r s -> r s c")
        return self.project(to_patches(latents, self.patch_size)) + positions.to(latents.dtype)
