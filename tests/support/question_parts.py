"""Small parts that read questions, for tests of everything around them."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmllm.encoders.tiny import TinyEncoder, TinyEncoderConfig
from mmllm.interfaces import VideoPath
from mmllm.preprocessing.question_reader import QuestionReaderConfig
from mmllm.registry import register
from mmllm.tokens import VisualSequence, VisualTokens

WORDS = tuple("when does the red circle spin ? what is blue square on screen".split())
READER = QuestionReaderConfig(words=WORDS, most_words=6)


@dataclass(frozen=True, kw_only=True)
class AskedPathConfig:
    """How it reads questions."""

    question_reader: QuestionReaderConfig = READER


@register("path", "asked", config=AskedPathConfig)
class AskedPath(VideoPath):
    """The tokens of all frames, shifted by the mean embedding of the question's words."""

    def __init__(self, config: AskedPathConfig, *, width: int) -> None:
        super().__init__()
        self.config = config
        self.words = nn.Embedding(config.question_reader.vocabulary_size, width)

    def forward(self, tokens: VisualTokens) -> VisualSequence:
        b, t, n, _ = tokens.shape
        frame = torch.arange(t, device=tokens.features.device).repeat_interleave(n).expand(b, t * n)
        shifted = tokens.features + mean_word(self.words, tokens.question)[:, None, None]
        return VisualSequence(
            embeddings=shifted.flatten(1, 2), mask=tokens.mask.flatten(1, 2), frame=frame, blocks=(("all", t * n),)
        )

    def token_counts(self, frames, grid, tokens_per_frame):
        return {"all": frames * tokens_per_frame}


@dataclass(frozen=True, kw_only=True)
class AskedTinyConfig(TinyEncoderConfig):
    """The tiny encoder's settings, and how it reads questions."""

    question_reader: QuestionReaderConfig = READER


@register("encoder", "asked-tiny", config=AskedTinyConfig)
class AskedTiny(TinyEncoder):
    """The tiny encoder, whose features are shifted by the mean embedding of the question's words."""

    def __init__(self, config: AskedTinyConfig) -> None:
        super().__init__(config)
        self.words = nn.Embedding(config.question_reader.vocabulary_size, self.width)

    def forward(self, pixels, *, frame_mask=None, scores=(), question=None):
        tokens = super().forward(pixels, frame_mask=frame_mask, scores=scores)
        return tokens.replace(features=tokens.features + mean_word(self.words, question)[:, None, None])


def mean_word(table: nn.Embedding, question: Tensor) -> Tensor:
    """B D: the mean embedding of ids B Q, zero for an empty question."""
    given = (question >= 0).unsqueeze(-1)
    return (table(question.clamp(min=0)) * given).sum(1) / given.sum(1).clamp(min=1)
