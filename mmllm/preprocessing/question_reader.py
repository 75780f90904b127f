"""The text of a question as ids for the visual parts that read it, such as a text encoder in an image tokenizer.

These ids are not those of the LLM: a part has the vocabulary that it was trained with. A part that reads questions says
so in its configuration, as a field or property `question_reader`; the processor then has the reader and writes the ids.

V videos or images, Q ids of the longest question
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmllm.errors import CheckpointError
from mmllm.fields import require
from mmllm.preprocessing.closed_vocabulary import SPECIAL, word_tokenizer

log = logging.getLogger(__name__)

FOLDER = "question_tokenizer"
"""Folder in a processor's folder with the tokenizer of questions, unless its words are in the settings."""
NO_ID = -1
"""Fills up shorter questions. A row that has nothing else is an empty question."""


@dataclass(frozen=True, kw_only=True)
class QuestionReaderConfig:
    """The vocabulary of questions, and how long they may be."""

    source: str | None = None
    """Hub id or folder of a tokenizer; None for `words`."""
    words: tuple[str, ...] = ()
    """The words and punctuation marks of a small vocabulary, in lower case."""
    llm: bool = False
    """The LLM's own tokenizer, in place of `source` and `words`."""
    most_words: int = 128
    """Most ids of a question. A longer one is cut off, with a warning."""
    special_tokens: bool = True
    """Whether the tokenizer adds its own first and last tokens, such as [CLS] and [SEP]; `words` have none."""

    def __post_init__(self) -> None:
        require(self.most_words > 0, self, "most_words", "positive")
        no_other = self.source is None and not self.llm
        require(no_other == bool(self.words), self, "words", "given if there is no source, and only then")
        require(not self.llm or self.source is None, self, "source", "left out for the LLM's own tokenizer")

    @property
    def vocabulary_size(self) -> int:
        """Number of ids of the small vocabulary of `words`."""
        return len(dict.fromkeys([*SPECIAL, *self.words]))


class QuestionReader:
    """Writes questions as ids. The tokenizer is loaded when it is first needed.

    Args:
        config: the vocabulary.
        folder: folder or hub id of a saved processor, whose tokenizer is used in place of the source's.
        llm: the LLM's tokenizer, for a configuration with `llm`.
        options: of transformers' `from_pretrained`, such as `revision`, for that folder.
    """

    def __init__(
        self, config: QuestionReaderConfig, folder: str | Path | None = None, *, llm: Any = None, **options: Any
    ) -> None:
        self.config, self.folder, self.options = config, folder, options
        self._llm = llm

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of questions.

        Raises:
            CheckpointError: if it cannot be loaded.
        """
        if self.config.llm:
            return self._llm
        if self.config.source is None:
            return word_tokenizer(self.config.words)
        from transformers import AutoTokenizer

        saved = self.folder is not None
        place = {"subfolder": FOLDER, **self.options} if saved else {}
        try:
            source = str(self.folder if saved else self.config.source)
            return AutoTokenizer.from_pretrained(source, trust_remote_code=False, **place)
        except (OSError, ValueError) as problem:
            name = f"{self.folder}/{FOLDER}" if saved else self.config.source
            raise CheckpointError(f"{name}: the tokenizer of questions cannot be loaded: {problem!s:.300}") from None

    def save(self, folder: str | Path) -> None:
        """Writes a tokenizer of its own into a processor's folder; a vocabulary of `words` is in the settings."""
        if self.config.source is not None:
            self.tokenizer.save_pretrained(Path(folder) / FOLDER)

    def ids(self, questions: Sequence[str]) -> Tensor:
        """int64, V Q: ids of each question, filled up with -1. An empty question has none."""
        rows = [self._row(question) for question in questions]
        longest = max([1, *map(len, rows)])
        return torch.tensor([row + [NO_ID] * (longest - len(row)) for row in rows], dtype=torch.long)

    def _row(self, question: str) -> list[int]:
        if not question.strip():
            return []
        options = {"add_special_tokens": self.config.special_tokens}
        ids = list(self.tokenizer(question, **options)["input_ids"])
        most = self.config.most_words
        if len(ids) <= most:
            return ids
        log.warning("a question of %d tokens is cut off after %d: %.60s", len(ids), most, question)
        return list(self.tokenizer(question, truncation=True, max_length=most, **options)["input_ids"])


def filled_up(ids: Tensor, width: int) -> Tensor:
    """Ids V Q with Q raised to `width`."""
    return torch.nn.functional.pad(ids, (0, width - ids.shape[1]), value=NO_ID)
