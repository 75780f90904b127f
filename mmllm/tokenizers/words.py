"""Visual tokens that already speak: the LLM's own words for what a classifier sees (ConSE, arXiv 1312.5650).

    scores of K classes ── best k ── softmax ── mean of their names' word embeddings ──┬── visual token
    features ── trained projector, zero at the start ──────────────────────────────────┘

The words need no training, and the trained projector beside them learns what the classes leave out. With `marks`,
tokens then show which words of the question they resemble (`question_marks`).

B videos, T frames, N patches, C width of the features beside the scores, K classes, D LLM width
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmllm import registry
from mmllm.errors import ConfigError
from mmllm.fields import require
from mmllm.interfaces import VisualTokenizer
from mmllm.preprocessing.class_names import class_names
from mmllm.preprocessing.question_reader import QuestionReaderConfig
from mmllm.registry import register
from mmllm.tokenizers.projectors import LinearProjector, MlpProjector
from mmllm.tokenizers.question_marks import QuestionMarks
from mmllm.tokens import VisualTokens


@dataclass(frozen=True, kw_only=True)
class WordsConfig:
    """How many names, and what is learned beside them."""

    best: int = 10
    """k: the names of so many classes with the highest scores are averaged."""
    names: str | None = None
    """Text file with the name of a class in each line; None for those of ImageNet. It is read once, before training."""
    beside: Any = "mlp"
    """The projector of the features that is trained beside the words, `linear` or `mlp`, as a mapping or as text with
    settings separated by semicolons: `mlp:depth=2;norm=true`. None for the words alone."""
    marks: int = 0
    """M: tokens are marked by up to so many runs of words of the question that they resemble; 0 reads no question."""

    def __post_init__(self) -> None:
        require(self.best >= 1, self, "best", "at least 1")
        require(self.marks >= 0, self, "marks", "zero or more")
        described = self.beside
        if isinstance(described, str):
            described = None if described.lower() == "none" else described.replace(";", ",")
        if described is not None:
            config = registry.config_of("tokenizer", described)
            described = registry.describe("tokenizer", config)
            if described["name"] not in ("linear", "mlp"):
                raise ConfigError(f"WordsConfig.beside = {described['name']!r}: must be linear, mlp or none")
        object.__setattr__(self, "beside", described)

    @property
    def question_reader(self) -> QuestionReaderConfig | None:
        """Questions in the LLM's own words, if there are marks."""
        return QuestionReaderConfig(llm=True, special_tokens=False) if self.marks else None


@register("tokenizer", "words", config=WordsConfig)
class WordsProjector(VisualTokenizer):
    """The LLM's word embeddings of the best class names, plus a trained projector of the features."""

    changeable_settings: ClassVar[tuple[str, ...]] = ("best",)
    question_comes_last = True

    def __init__(
        self, config: WordsConfig, *, in_width: int, out_width: int, grid: Any = None, class_count: int = 0
    ) -> None:
        super().__init__()
        self.config = config
        self.widths = (in_width - class_count, class_count)
        if class_count == 0:
            raise ConfigError(
                "words needs an encoder that also gives the scores of a classifier: timm:name=...,classes=frame"
            )
        require(config.best <= class_count, config, "best", f"at most {class_count}, the number of classes")
        self.register_buffer("embeddings", torch.zeros(class_count, out_width))  # K D
        self.embeddings: Tensor
        context = {"in_width": self.widths[0], "out_width": out_width, "grid": grid}
        self.beside = None if config.beside is None else registry.build("tokenizer", config.beside, **context)
        if self.beside is not None:
            _start_from_zero(self.beside)
        self.marks = QuestionMarks(out_width, config.marks) if config.marks else None

    @property
    def words(self) -> Sequence[str]:
        """The names of the K classes."""
        return class_names(self.widths[1], self.config.names)

    def start_from(self, embeddings: Tensor) -> None:
        """Takes the LLM's embeddings of the names, K D."""
        self.embeddings.copy_(embeddings)

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """Features and scores, B T N C+K, to B T N D."""
        spoken, named = self._spoken(tokens)
        if self.marks is None:
            return spoken
        apart = None if self.beside is None else named
        return spoken.replace(features=self.marks(spoken, self.embeddings.mean(0), apart))

    def unasked(self, tokens: VisualTokens) -> VisualTokens:
        """The tokens without marks."""
        return self._spoken(tokens)[0]

    def _spoken(self, tokens: VisualTokens) -> tuple[VisualTokens, Tensor]:
        """The tokens without marks, and B T N D: what the names of the classes alone say."""
        features, scores = tokens.features.split(self.widths, dim=-1)
        named = self.mean_words(scores)
        if self.beside is None:
            return tokens.replace(features=named), named
        return tokens.replace(features=named + self.beside(tokens.replace(features=features)).features), named

    def mean_words(self, scores: Tensor) -> Tensor:
        """... D: the mean embedding of the names of the best k classes, weighted by their probabilities.

        Args:
            scores: ... K, logits.
        """
        best = scores.float().topk(self.config.best, dim=-1)
        # a softmax over the best alone is that over all classes, divided by the sum of the best
        weights = torch.zeros_like(scores, dtype=torch.float32).scatter(-1, best.indices, best.values.softmax(-1))
        return weights.to(self.embeddings.dtype) @ self.embeddings


@torch.no_grad()
def _start_from_zero(projector: LinearProjector | MlpProjector) -> None:
    """Sets the last linear map to zero: training starts from the words alone."""
    last = [part for part in projector.modules() if isinstance(part, (nn.Linear, LinearProjector))][-1]
    last.weight.zero_()
    last.bias.zero_()
