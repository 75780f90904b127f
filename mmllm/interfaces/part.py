"""What every registered part has, whatever its kind."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from mmllm.preprocessing.question_reader import QuestionReaderConfig


class Part:
    """The fields of every registered part."""

    registered_name: ClassVar[str] = ""
    """The name under which it is registered; set by `mmllm.registry.register`."""
    config: Any
    changeable_settings: ClassVar[tuple[str, ...]] = ()
    """Fields of its configuration for which a trained part takes other values with the same weights, such as `tokens`.
    Its constructor refuses values that do not fit."""

    @property
    def has_weights(self) -> bool:
        """Whether it has weights. They must then have been trained with the model."""
        return isinstance(self, nn.Module) and next(self.parameters(), None) is not None

    @property
    def question_reader(self) -> QuestionReaderConfig | None:
        """The vocabulary in which it reads questions, which its configuration has as `question_reader`; None if it
        reads none."""
        return getattr(self.config, "question_reader", None)

    @property
    def reads_question(self) -> bool:
        """Whether its output depends on the question. It finds the ids in `VisualTokens.question`; an encoder gets
        them as the argument `question` (int64, B Q, filled up with -1)."""
        return self.question_reader is not None

    @property
    def reads_words(self) -> bool:
        """Whether it reads questions in the LLM's vocabulary: then it finds the LLM's embeddings of the ids, too, in
        `VisualTokens.words`."""
        return self.question_reader is not None and self.question_reader.llm
