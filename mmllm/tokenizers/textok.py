"""TexTok in front of the LLM: each frame as its image tokens, without any caption. Only the encoder half is built.

At question time there is no caption of a frame, and a true one would give the answer away: the half reads its learned
null text, for which it was trained with `text_drop`. Or it reads the user's question, so that its tokens may keep what
the question is about; this is ours, and was not published. No other text can be given.

B videos, T frames, F frames run at once, N tokens of a frame, C width of a token, S side in pixels, Q ids of a question
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from mmllm.errors import InputError
from mmllm.fields import require
from mmllm.modeling.tower import load_strictly
from mmllm.preprocessing.frames import FrameTransform
from mmllm.preprocessing.question_reader import QuestionReaderConfig
from mmllm.registry import register
from mmllm.tokenizers.autoencoders.text_features import Captions, TextFeatures, TextFeaturesConfig
from mmllm.tokenizers.autoencoders.textok import TexTokConfig, TexTokEncoder
from mmllm.tokenizers.frame_tokens import FrameTokens, from_minus_one_to_one
from mmllm.tokens import VisualTokens


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
    text: Literal["null", "question"] = "null"
    """`null`: its learned null text. `question`: the question about the video or image, the same for all its frames."""
    text_source: str | None = "google/t5-v1_1-xl"
    """For questions, the T5 it was trained with: folder or hub id. Its frozen encoder is loaded from there each time,
    and not saved with the model. None: a small one, drawn from `text_seed`, for `text_words`."""
    text_words: tuple[str, ...] = ()
    """The words that a small T5 knows."""
    text_layers: int = 2
    """Layers of a small T5."""
    text_seed: int = 0
    """Of the weights of a small T5."""
    chunk: int = 16
    """Most frames run at once; bounds the memory."""

    def __post_init__(self) -> None:
        require(self.chunk > 0, self, "chunk", "positive")
        require(self.text == "null" or self.reads_text, self, "text", "null for a half that was trained without text")
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
            text=self._text_features(),
        )

    def _text_features(self) -> TextFeaturesConfig:
        if self.text == "null":
            return TextFeaturesConfig(width=self.text_width, most_words=self.most_words)
        return TextFeaturesConfig(
            source=self.text_source,
            width=self.text_width,
            most_words=self.most_words,
            words=self.text_words,
            layers=self.text_layers,
            seed=self.text_seed,
        )

    @property
    def question_reader(self) -> QuestionReaderConfig | None:
        """Questions as ids of T5's tokenizer; None for the null text."""
        if self.text == "null":
            return None
        words = self.text_words if self.text_source is None else ()
        return QuestionReaderConfig(source=self.text_source, words=words, most_words=self.most_words)

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
        self.text = TextFeatures(config.half().text) if config.text == "question" else None
        self.width = config.width if config.source == "features" else config.token_width

    def tokens(self, frames: Tensor, text: Captions | None = None) -> Tensor:
        """Tokens F N C of frames F 3 S S, with the text of each; None for the null text."""
        return self.encoder.features(frames, text) if self.config.source == "features" else self.encoder(frames, text)

    def forward(
        self,
        pixels: Tensor,
        *,
        frame_mask: Tensor | None = None,
        scores: Collection[str] = (),
        question: Tensor | None = None,
    ) -> VisualTokens:
        """Tokens B T N C of pixels B T 3 S S; see `FrameTokens.forward`.

        `question` (int64, B Q) are ids of T5's tokenizer, filled up with -1; an empty one is the null text. Its
        features are computed once for all frames.

        Raises:
            InputError: as in `FrameTokens.forward`; for a question that this half does not read, or none that it does.
        """
        if self.text is None:
            if question is not None:
                raise InputError(f"{self.registered_name} with text=null reads no question: text=question does")
            return super().forward(pixels, frame_mask=frame_mask, scores=scores)
        if question is None:
            raise InputError(f"{self.registered_name} with text=question needs the question about each video or image")
        if len(question) != len(pixels):
            raise InputError(f"{len(pixels)} videos or images need as many questions, not {len(question)}")
        text = self.text.of_ids(question.to(pixels.device))
        return self.encoded(
            lambda frames, video: self.tokens(frames, text.of(video)), pixels, frame_mask, scores, with_video=True
        )


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
