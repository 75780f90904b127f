"""FastViTHD, the encoder of FastVLM: five stages of convolutions and attention, one token for 64 x 64 pixels.

timm's `fastvit_mci3` is the same network. Unless `train_batch_norms` is set, its batch norms use their running
statistics even while the rest is trained: frames of one video are too similar to estimate statistics from.

B videos, T frames, F frames run at once, N tokens, C width, S side in pixels
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch
from einops import rearrange
from torch import Tensor, nn

from mmllm.encoders.attention import received_attention
from mmllm.encoders.fastvithd_names import tower_of
from mmllm.errors import CheckpointError
from mmllm.fields import require
from mmllm.interfaces import Encoder
from mmllm.modeling.tower import (
    FrameOutput,
    check_pixels,
    encode_frames,
    keep_statistics,
    load_strictly,
    needs_gradient,
    read_scores,
)
from mmllm.preprocessing.frames import FrameTransform
from mmllm.registry import register
from mmllm.tokens import VisualTokens

STRIDE = 64
"""Pixels that a token spans in each direction."""
HEAD_WIDTH = 32


@dataclass(frozen=True, kw_only=True)
class FastVitHdConfig:
    """FastViTHD as released with FastVLM, 125 M parameters."""

    image_size: int = 1024
    """Side of the square input in pixels; it alone decides the number of tokens."""
    layers: tuple[int, int, int, int, int] = (2, 12, 24, 4, 2)
    """Blocks of each stage."""
    dims: tuple[int, int, int, int, int] = (96, 192, 384, 768, 1536)
    """Width of each stage; the features are twice as wide as the last."""
    fit: Literal["crop", "pad", "squash"] = "pad"
    """How a frame is brought to the square. FastVLM was trained with padded images; transformers' processor crops."""
    branches: bool = False
    """Keep the branches of each convolution apart, to train the encoder itself; `fuse` joins them afterwards. In the
    released weights they are joined and cannot be taken apart."""
    train_batch_norms: bool = False
    """Let batch norms estimate statistics while the encoder is trained; never while it is frozen."""
    clip_width: int | None = None
    """Width of the CLIP head in the release's weights; None without one. The head is not used, only loaded and saved
    with the rest."""
    chunk: int = 4
    """Most frames run at once; bounds the memory."""

    def __post_init__(self) -> None:
        divisible = self.image_size > 0 and self.image_size % STRIDE == 0
        require(divisible, self, "image_size", f"a positive multiple of {STRIDE}")
        require(all(count > 0 for count in self.layers), self, "layers", "positive")
        whole_heads = all(width % HEAD_WIDTH == 0 for width in self.dims[3:])  # the last two stages have attention
        allowed = f"positive, the last two multiples of {HEAD_WIDTH}"
        require(all(width > 0 for width in self.dims) and whole_heads, self, "dims", allowed)
        require(self.chunk > 0, self, "chunk", "positive")
        require(self.clip_width is None or self.clip_width > 0, self, "clip_width", "positive")

    @property
    def frames(self) -> FrameTransform:
        """How frames are prepared for this encoder: values in [0, 1], not normalised."""
        return FrameTransform(size=self.image_size, fit=self.fit, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def build_tower(
    layers: tuple[int, ...], dims: tuple[int, ...], *, inference: bool = True, clip_width: int | None = None
) -> Any:
    """timm's network of that size.

    Args:
        layers: blocks of each stage.
        dims: width of each stage.
        inference: build each convolution with its branches joined, as in the release.
        clip_width: width of a frozen CLIP head; None for no head.
    """
    import timm

    tower: Any = timm.create_model(
        "fastvit_mci3", layers=layers, embed_dims=dims, num_classes=clip_width or 0, inference_mode=inference
    )
    if clip_width is None:
        tower.head = nn.Identity()
    else:
        tower.head.requires_grad_(False)
    return tower


@register("encoder", "fastvithd", config=FastVitHdConfig)
class FastVitHdEncoder(Encoder):
    """FastViTHD of FastVLM: few tokens; the size of the input decides how many."""

    score_names = frozenset({"mean_attention"})

    def __init__(self, config: FastVitHdConfig) -> None:
        super().__init__()
        self.config = config
        self.width = 2 * config.dims[-1]
        self.grid = (config.image_size // STRIDE,) * 2
        self.tower = build_tower(
            config.layers, config.dims, inference=not config.branches, clip_width=config.clip_width
        )

    def train(self, mode: bool = True) -> Self:
        """Training mode for all modules; for the batch norms only if they are trained, too."""
        super().train(mode)
        if not (self.config.train_batch_norms and needs_gradient(self)):
            keep_statistics(self)
        return self

    def fuse(self) -> None:
        """Joins the branches of each convolution. Outputs outside of training do not change."""
        from timm.utils import reparameterize_model

        self.tower = reparameterize_model(self.tower.eval())
        self.config = replace(self.config, branches=False)

    def forward(
        self, pixels: Tensor, *, frame_mask: Tensor | None = None, scores: Collection[str] = ()
    ) -> VisualTokens:
        """Tokens of the final convolution's feature map, row by row.

        Args:
            pixels: float, B T 3 S S, in [0, 1].
            frame_mask: bool, B T. Frames where it is False are not run.
            scores: `mean_attention` of the last block, or `mean_attention@I` of block I of the last stage. They are
                approximate, because the final convolution mixes neighbours afterwards.

        Raises:
            InputError: for pixels of another size or type, or a score that does not exist.
        """
        check_pixels(pixels, encoder="fastvithd", size=self.config.image_size)
        if pixels.numel() and (pixels.amin() < -0.01 or pixels.amax() > 1.01):
            warnings.warn("fastvithd needs pixels in [0, 1], and some of these lie outside", stacklevel=2)
        blocks = self.config.layers[-1]
        requested = read_scores(scores, encoder="fastvithd", offers=self.score_names, layers=blocks, default=blocks - 1)
        return encode_frames(
            lambda frames: self._run(frames, requested),
            pixels,
            grid=self.grid,
            chunk=self.config.chunk,
            frame_mask=frame_mask,
            trainable=needs_gradient(self),
        )

    def _run(self, frames: Tensor, requested: Mapping[str, tuple[str, int]]) -> FrameOutput:
        """All stages; scores are taken before the blocks of the last one."""
        tower, scores = self.tower, {}
        x = tower.stem(frames.to(next(tower.parameters()).dtype))
        for stage in tower.stages[:-1]:
            x = stage(x)
        last = tower.stages[-1]
        x = last.pos_emb(last.downsample(x))
        for number, block in enumerate(last.blocks):
            for name, (_, layer) in requested.items():
                if layer == number:
                    scores[name] = self._received(block, x)  # F N
            x = block(x)
        features = rearrange(tower.final_conv(x), "f c h w -> f (h w) c")
        return FrameOutput(features=features, scores=scores)

    @torch.no_grad()
    def _received(self, block: Any, x: Tensor) -> Tensor:
        normed = rearrange(block.norm(x), "f c h w -> f (h w) c")
        queries, keys, _ = block.token_mixer.qkv(normed).chunk(3, dim=-1)
        return received_attention(queries, keys, heads=x.shape[1] // HEAD_WIDTH)


def load_fastvithd_tower(encoder: FastVitHdEncoder, state: Mapping[str, Tensor]) -> None:
    """Loads FastViTHD weights: Apple's release, transformers' FastVLM or timm, in inference or in training form.

    In training form each convolution has several branches. They are fused, unless the encoder keeps its branches.

    Raises:
        CheckpointError: if the tower is not found, is quantised for other hardware, has its branches joined where the
            encoder keeps them, or a tensor of it is missing, unknown or of another shape.
    """
    if not encoder.config.branches:
        load_strictly(encoder.tower, inference_form(encoder.config, state), what="FastViTHD")
        return
    tower, training_form = tower_of(state)
    if not training_form:
        raise CheckpointError("these weights have their branches joined; set branches = False to load them")
    load_strictly(encoder.tower, tower, what="FastViTHD in training form")


def inference_form(config: FastVitHdConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tower of a state dict under timm's names, without CLIP head; branches of the training form are fused.

    Raises:
        CheckpointError: as `load_fastvithd_tower`.
    """
    tower, training_form = tower_of(state)
    if not training_form:
        return tower
    from timm.utils import reparameterize_model

    device = next(iter(tower.values())).device
    with device:
        branched = build_tower(config.layers, config.dims, inference=False)
    load_strictly(branched, tower, what="FastViTHD in training form")
    if device.type == "meta":  # tensors without values cannot be fused: only names and shapes matter
        with device:
            return dict(build_tower(config.layers, config.dims).state_dict())
    return dict(reparameterize_model(branched.eval()).state_dict())
