"""Images of any resolution as LLaVA-NeXT reads them: the whole image, then the mosaic of its tiles row by row.

    whole image  t t t t     mosaic, each row ended by a learned newline  t t t t t t n
                 t t t t                                                  t t t t t t n

Videos have no tiles. The LLM reads all tokens of all frames in order, as with the plain path.

B videos or images, T frames or partitions, N tokens of each, D LLM width, L tokens of the sequence
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from mmllm.interfaces import Grid, VideoPath
from mmllm.paths.plain import in_order
from mmllm.preprocessing.mosaic import read_out
from mmllm.registry import register
from mmllm.tokens import PATCHLESS, VisualSequence, VisualTokens


@dataclass(frozen=True, kw_only=True)
class AnyresConfig:
    """LLaVA-NeXT's `spatial_unpad` with a newline; with both options off, its plain `spatial`."""

    unpad: bool = True
    """Leave out patches that show only the padding of the image."""
    newline: bool = True
    """End each row of the mosaic with a learned vector."""


@register("path", "anyres", config=AnyresConfig)
class AnyresPath(VideoPath):
    """Tiled images as a mosaic with row ends (LLaVA-NeXT); videos frame by frame."""

    newline: nn.Parameter | None

    def __init__(self, config: AnyresConfig, *, width: int = 0) -> None:
        super().__init__()
        self.config = config
        self.newline = nn.Parameter(torch.randn(width) * max(width, 1) ** -0.5) if config.newline else None

    def forward(self, tokens: VisualTokens) -> VisualSequence:
        """Features B T N D in reading order; a mosaic of reduced tokens keeps its rows.

        Raises:
            InputError: for tiled images whose tokens have no place on a patch grid.
        """
        if tokens.tiling is None:
            return in_order(tokens)
        packed = read_out(tokens, unpad=self.config.unpad, newline=self.newline)
        return VisualSequence(
            embeddings=packed.features,
            mask=packed.mask,
            frame=packed.partition,
            blocks=(("image", packed.features.shape[1]),),
            place=packed.index.masked_fill((packed.index < 0) & packed.mask, PATCHLESS),  # row ends
            grid=tokens.grid,
        )

    def token_counts(self, frames: int, grid: Grid, tokens_per_frame: int) -> dict[str, int]:
        """The number of tokens of a video of `frames` frames."""
        return {"frames": frames * tokens_per_frame}
