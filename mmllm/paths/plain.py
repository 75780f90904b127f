"""Every token of every frame, in order, as LLaVA and the models based on it read images and videos.

B videos or images, T frames, N tokens of a frame, D LLM width
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange, repeat

from mmllm.interfaces import Grid, VideoPath
from mmllm.registry import register
from mmllm.tokens import VisualSequence, VisualTokens


@dataclass(frozen=True, kw_only=True)
class PlainConfig:
    """Nothing to choose."""


@register("path", "plain", config=PlainConfig)
class PlainPath(VideoPath):
    """All tokens of all frames, frame by frame, in raster order."""

    def __init__(self, config: PlainConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, tokens: VisualTokens) -> VisualSequence:
        """One block `frames` of the features B T N D, flattened in time, then in raster order."""
        return in_order(tokens)

    def token_counts(self, frames: int, grid: Grid, tokens_per_frame: int) -> dict[str, int]:
        """The number of tokens of a video of `frames` frames."""
        return {"frames": frames * tokens_per_frame}


def in_order(tokens: VisualTokens) -> VisualSequence:
    """One block `frames` of the features B T N D, flattened in time, then in raster order."""
    b, t, n, _ = tokens.shape
    frame = torch.arange(t, device=tokens.features.device)
    return VisualSequence(
        embeddings=rearrange(tokens.features, "b t n d -> b (t n) d"),
        mask=rearrange(tokens.mask, "b t n -> b (t n)"),
        frame=repeat(frame, "t -> b (t n)", b=b, n=n),
        blocks=(("frames", t * n),),
        place=rearrange(tokens.index, "b t n -> b (t n)"),
        grid=tokens.grid,
    )
