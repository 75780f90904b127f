"""TexTok in front of the LLM: each frame as its image tokens, without any caption. Only the encoder half is built.

At question time there is no caption of a frame, and a true one would give the answer away: the half reads its learned
null text, for which it was trained with `text_drop`.

B videos, T frames, F frames run at once, N tokens of a frame, C width of a token, S side in pixels
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from mmllm.fields import require
from mmllm.modeling.tower import load_strictly
from mmllm.preprocessing.frames import FrameTransform
from mmllm.registry import register
from mmllm.tokenizers.autoencoders.text_features import TextFeaturesConfig
from mmllm.tokenizers.autoencoders.textok import TexTokConfig, TexTokEncoder
from mmllm.tokenizers.frame_tokens import FrameTokens, from_minus_one_to_one


@dataclass(frozen=True, kw_only=True)
class TexTokFramesConfig:
    """TexTok's encoder half; the defaults are the published sizes for 256 pixels and 128 tokens."""

    tokens: int = 128
    """Tokens of a frame; the trained half has this number and no other."""
    source: Literal["features", "latents"] = "features"
    """`features`: image tokens of the full width. `latents`: the few channels that the decoder reads."""
    image_size: int = 256
    """Side of the square frame in pixels."""
    patch_size: int = 8
    """Side of a patch in pixels."""
    token_width: int = 8
    """Channels of a latent."""
    width: int = 768
    layers: int = 12
    heads: int = 12
    reads_text: bool = True
    """Whether the half was trained with captions; it then has a null text."""
    text_width: int = 2048
    """Width of the text features it was trained with."""
    most_words: int = 128
    """Most words of a caption it was trained with."""
    chunk: int = 16
    """Most frames run at once; bounds the memory."""

    def __post_init__(self) -> None:
        require(self.chunk > 0, self, "chunk", "positive")
        self.half()

    def half(self) -> TexTokConfig:
        """The settings of the encoder half."""
        return TexTokConfig(
            image_size=self.image_size,
            patch_size=self.patch_size,
            tokens=self.tokens,
            token_width=self.token_width,
            width=self.width,
            layers=self.layers,
            heads=self.heads,
            text_in="tokenizer" if self.reads_text else "none",
            text=TextFeaturesConfig(width=self.text_width, most_words=self.most_words),
        )

    @property
    def frames(self) -> FrameTransform:
        """How frames are prepared for this encoder: from -1 to 1."""
        return from_minus_one_to_one(self.image_size)


@register("encoder", "textok", config=TexTokFramesConfig)
class TexTokFrames(FrameTokens):
    """A fixed number of 1D tokens of each frame (TexTok, or a tokenizer in TiTok's manner)."""

    def __init__(self, config: TexTokFramesConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = TexTokEncoder(config.half())
        self.width = config.width if config.source == "features" else config.token_width

    def tokens(self, frames: Tensor) -> Tensor:
        """Tokens F N C of frames F 3 S S."""
        return self.encoder.features(frames) if self.config.source == "features" else self.encoder(frames)


def load_textok_encoder(encoder: TexTokFrames, state: Mapping[str, Tensor]) -> None:
    """Loads the encoder half of a TexTok that `mmllm train-tokenizer` has trained; the decoder's half is left out.

    So is the spread of tokens that were drawn in training: the tokens are the means.

    Raises:
        CheckpointError: if a tensor of the half is missing, unknown or of another shape.
    """
    half = {
        name: value
        for name, value in state.items()
        if name.startswith("encoder.") and not name.startswith("encoder.to_log_variance.")
    }
    load_strictly(encoder, half, what="TexTok's encoder half")
