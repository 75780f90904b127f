"""ConvNeXt as CLIP trains it: the feature map of its last stage as tokens. It has no attention, so it gives no scores.

B videos, T frames, F frames run at once, C width, S side in pixels
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from einops import rearrange
from torch import Tensor, nn

from mmllm.fields import require
from mmllm.interfaces import Encoder
from mmllm.modeling.tower import (
    FrameOutput,
    below,
    check_pixels,
    encode_frames,
    load_strictly,
    needs_gradient,
    read_scores,
)
from mmllm.preprocessing.frames import CLIP_MEAN, CLIP_STD, FrameTransform
from mmllm.registry import register
from mmllm.tokens import VisualTokens

STRIDE = 32
"""Pixels that a token spans in each direction."""


@dataclass(frozen=True, kw_only=True)
class ConvNextConfig:
    """A ConvNeXt trunk; the defaults are convnext_xxlarge of LAION-2B at the input size of the Slow-Fast hybrid."""

    image_size: int = 576
    """Side of the square input in pixels."""
    depths: tuple[int, int, int, int] = (3, 4, 30, 3)
    """Blocks of each stage."""
    dims: tuple[int, int, int, int] = (384, 768, 1536, 3072)
    """Width of each stage; the last is the width of the features."""
    norm_eps: float = 1e-5
    """Epsilon of the layer norms; 1e-6 in the large and smaller variants."""
    fit: Literal["crop", "pad", "squash"] = "crop"
    """How a frame is brought to the square; see `FrameTransform`."""
    chunk: int = 8
    """Most frames run at once; bounds the memory."""

    def __post_init__(self) -> None:
        divisible = self.image_size > 0 and self.image_size % STRIDE == 0
        require(divisible, self, "image_size", f"a positive multiple of {STRIDE}")
        for field in ("depths", "dims"):
            require(all(value > 0 for value in getattr(self, field)), self, field, "positive")
        require(self.chunk > 0, self, "chunk", "positive")

    @property
    def frames(self) -> FrameTransform:
        """How frames are prepared for this encoder."""
        return FrameTransform(size=self.image_size, fit=self.fit, mean=CLIP_MEAN, std=CLIP_STD)


@register("encoder", "convnext", config=ConvNextConfig)
class ConvNextEncoder(Encoder):
    """ConvNeXt trunk of CLIP, built by timm: the last stage's feature map, without the final norm."""

    score_names: frozenset[str] = frozenset()

    def __init__(self, config: ConvNextConfig) -> None:
        import timm

        super().__init__()
        self.config = config
        self.width = config.dims[-1]
        self.grid = (config.image_size // STRIDE,) * 2
        self.tower: Any = timm.create_model(
            "convnext_xxlarge", depths=config.depths, dims=config.dims, norm_eps=config.norm_eps, num_classes=0
        )
        self.tower.head = nn.Identity()

    def forward(
        self, pixels: Tensor, *, frame_mask: Tensor | None = None, scores: Collection[str] = ()
    ) -> VisualTokens:
        """Features of the last stage.

        Args:
            pixels: float, B T 3 S S, normalised with CLIP's constants.
            frame_mask: bool, B T. Frames where it is False are not run.
            scores: must be empty.

        Raises:
            InputError: for pixels of another size or type, or for any score.
        """
        check_pixels(pixels, encoder="convnext", size=self.config.image_size)
        read_scores(scores, encoder="convnext", offers=self.score_names)
        return encode_frames(
            lambda frames: FrameOutput(features=rearrange(self._feature_map(frames), "f c h w -> f (h w) c")),
            pixels,
            grid=self.grid,
            chunk=self.config.chunk,
            frame_mask=frame_mask,
            trainable=needs_gradient(self),
        )

    def _feature_map(self, frames: Tensor) -> Tensor:
        return self.tower.forward_features(frames.to(self.tower.stem[0].weight.dtype))


def load_convnext_tower(encoder: ConvNextEncoder, state: Mapping[str, Tensor]) -> None:
    """Loads ConvNeXt weights under timm's names, with any prefix (`visual.trunk.` in open_clip).

    The Slow-Fast release calls a block's layer scale `weight` instead of `gamma`. Classification heads are ignored.

    Raises:
        CheckpointError: if the trunk is not found, or a tensor of it is missing, unknown or of another shape.
    """
    tensors = below(state, "stages.0.blocks.0.conv_dw.weight", what="a ConvNeXt trunk")
    trunk = {
        re.sub(r"^(stages\.\d+\.blocks\.\d+)\.weight$", r"\1.gamma", name): value
        for name, value in tensors.items()
        if name.startswith(("stem.", "stages.", "norm_pre."))
    }
    load_strictly(encoder.tower, trunk, what="the ConvNeXt trunk")
