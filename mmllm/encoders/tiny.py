"""A small frame encoder that learns on a CPU: convolutions, a class token that attends to the patches.

         frame minus its mean ─┐
    step back, step forward  ─┴─ conv /4 ─ conv /2 ─ conv /2 ─ + position ─ MLP ─┬─ patch features
                                                               class query ──────┴─ attention ─ class token

B videos, T frames, S side in pixels, N patches of a frame, C feature width, H attention heads

Unlike encoders of single frames, it sees motion: beside each frame it takes the differences to the frames `step` before
and after. Only so do the features of the frozen encoder differ between a spinning and a still shape.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from mmllm.encoders.attention import mean_keys
from mmllm.fields import require
from mmllm.interfaces import Encoder
from mmllm.modeling.tower import check_pixels, read_scores
from mmllm.preprocessing.frames import FrameTransform
from mmllm.registry import register
from mmllm.tokens import VisualTokens

STRIDE = 16
"""Pixels that a patch spans in each direction."""


@dataclass(frozen=True, kw_only=True)
class TinyEncoderConfig:
    """About 0.3 M parameters at the defaults; random until it is trained (`mmllm.train.stages.frame_encoder`)."""

    image_size: int = 64
    """Side of the frame in pixels."""
    channels: tuple[int, int, int] = (48, 64, 128)
    """Widths of the three convolutions."""
    width: int = 192
    """Width of the features."""
    heads: int = 4
    """Heads of the class token's attention."""
    step: int = 1
    """How many sampled frames back and forward the differences reach. Over too short a time, noise hides them."""

    def __post_init__(self) -> None:
        require(self.image_size % STRIDE == 0 and self.image_size > 0, self, "image_size", f"a multiple of {STRIDE}")
        require(self.width % self.heads == 0, self, "width", f"divisible by the {self.heads} heads")
        require(self.step >= 1, self, "step", "at least 1")

    @property
    def frames(self) -> FrameTransform:
        """How frames are prepared for this encoder."""
        return FrameTransform(size=self.image_size, fit="pad", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@register("encoder", "tiny", config=TinyEncoderConfig)
class TinyEncoder(Encoder):
    """Small convolutional frame encoder with a class token; trains on a CPU in minutes."""

    score_names = frozenset({"cls_attention", "keys"})

    def __init__(self, config: TinyEncoderConfig) -> None:
        super().__init__()
        self.config = config
        side = config.image_size // STRIDE
        self.grid = (side, side)
        self.width, self.reach = config.width, config.step
        first, second, third = config.channels
        self.stem = nn.Sequential(
            nn.Conv2d(9, first, 4, stride=4),
            nn.GroupNorm(1, first),
            nn.GELU(),
            nn.Conv2d(first, second, 3, stride=2, padding=1),
            nn.GroupNorm(1, second),
            nn.GELU(),
            nn.Conv2d(second, third, 3, stride=2, padding=1),
            nn.GroupNorm(1, third),
            nn.GELU(),
        )
        self.position = nn.Parameter(torch.randn(side * side, third) * 0.02)
        self.embed = nn.Linear(third, config.width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(third), nn.Linear(third, 2 * third), nn.GELU(), nn.Linear(2 * third, config.width)
        )
        self.norm = nn.LayerNorm(config.width)
        self.class_query = nn.Parameter(torch.randn(config.width) * 0.02)
        self.key = nn.Linear(config.width, config.width)
        self.value = nn.Linear(config.width, config.width)

    def forward(
        self,
        pixels: Tensor,
        *,
        frame_mask: Tensor | None = None,
        scores: Collection[str] = (),
        margins: tuple[int, int] = (0, 0),
    ) -> VisualTokens:
        """Patch features and, on request, the class token's attention.

        Args:
            pixels: float, B T 3 S S, normalised.
            frame_mask: bool, B T. False at frames that only pad a batch; their tokens are masked.
            scores: `cls_attention`, the class token's attention B T N, and `keys`, B T N K, mean over heads.
            margins: how many frames at both ends have no tokens; they are only compared with.

        Raises:
            InputError: for pixels of another size or type, or a score that does not exist.
        """
        check_pixels(pixels, encoder="tiny", size=self.config.image_size)
        requested = read_scores(scores, encoder="tiny", offers=self.score_names, layers=1)
        inputs, inner = self.inputs(pixels), slice(margins[0], pixels.shape[1] - margins[1])
        frames = rearrange(inputs[:, inner], "b t c y x -> (b t) c y x")
        # A chunk of the same frames gives the same numbers in a video that is read in pieces.
        chunks = [frames] if torch.compiler.is_exporting() else frames.split(self.chunk)
        patches = [self.features(chunk) for chunk in chunks]
        features = rearrange(torch.cat(patches), "(b t) n c -> b t n c", b=len(pixels))
        tokens = VisualTokens(features=features, grid=self.grid)
        if frame_mask is not None:
            tokens = tokens.replace(mask=repeat(frame_mask[:, inner], "b t -> b t n", n=features.shape[2]))
        computed = {
            name: torch.cat([self._score(kind, chunk) for chunk in patches]).unflatten(0, features.shape[:2])
            for name, (kind, _) in requested.items()
        }
        return tokens.replace(scores=computed)

    def _score(self, kind: str, patches: Tensor) -> Tensor:
        """F N, or of keys F N K, of patches F N C."""
        if kind == "keys":
            return mean_keys(self.key(patches), heads=self.config.heads)
        return self.attention(patches).mean(dim=1)

    def inputs(self, pixels: Tensor) -> Tensor:
        """B T 9 S S of pixels B T 3 S S: each frame minus its mean, and the differences back and forward."""
        t, step = pixels.shape[1], self.config.step
        frame = torch.arange(t, device=pixels.device)
        earlier, later = pixels[:, (frame - step).clamp(min=0)], pixels[:, (frame + step).clamp(max=t - 1)]
        centred = pixels - pixels.mean(dim=(-2, -1), keepdim=True)
        return torch.cat([centred, pixels - earlier, later - pixels], dim=2)

    def features(self, inputs: Tensor) -> Tensor:
        """F N C: patch features of frames, given as inputs F 9 S S."""
        inputs = inputs.contiguous(memory_format=torch.channels_last)  # 10 % faster on a CPU
        x = rearrange(self.stem(inputs), "f c y x -> f (y x) c") + self.position
        return self.norm(self.embed(x) + self.mlp(x))

    def attention(self, patches: Tensor) -> Tensor:
        """Attention of the class query over the patches (F N C) of each frame, for each head: F H N."""
        heads = self.config.heads
        query = rearrange(self.class_query, "(h c) -> h c", h=heads)
        key = rearrange(self.key(patches), "f n (h c) -> f h n c", h=heads)
        return (torch.einsum("hc,fhnc->fhn", query, key) * query.shape[-1] ** -0.5).softmax(dim=-1)

    def class_token(self, patches: Tensor) -> Tensor:
        """F C: the class token of the patches (F N C). It is trained with the encoder; the LLM does not read it."""
        value = rearrange(self.value(patches), "f n (h c) -> f h n c", h=self.config.heads)
        return rearrange(torch.einsum("fhn,fhnc->fhc", self.attention(patches), value), "f h c -> f (h c)")
