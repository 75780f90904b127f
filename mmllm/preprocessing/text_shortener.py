"""Text made shorter by a classifier of its pieces, before an LLM reads it: instructions, subtitles, earlier turns.

Times in a text, such as <12.4> and <t37>, stay as they are. Nothing visual goes through it.

N pieces of a chunk
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mmllm.errors import CheckpointError, ConfigError
from mmllm.hub.sources import local_folder
from mmllm.preprocessing.llmlingua2 import LlmLingua2Config, chunks_of, labels_of, text_of, words_of

_MOST = 512
"""Pieces of a chunk with its first and last token, as released."""
_HASHES = {"bert": True, "xlm-roberta": False}
"""Model type -> how its pieces say that a word goes on; see `words_of`."""
_TIMES = re.compile(r"(<t?[0-9.]+>)")


class TextShortener:
    """LLMLingua-2.

    Args:
        source: folder or hub id of a token classifier with two labels, the second of which means "stays", such as
            `microsoft/llmlingua-2-bert-base-multilingual-cased-meetingbank`.
        config: how much stays.
        tokens: how many tokens the LLM has for a text.

    Raises:
        CheckpointError: if it cannot be loaded.
        ConfigError: if it is of another kind.
    """

    def __init__(self, source: str | Path, config: LlmLingua2Config, tokens: Callable[[str], int]) -> None:
        from transformers import AutoModelForTokenClassification, AutoTokenizer

        folder = local_folder(source)
        try:
            model: Any = AutoModelForTokenClassification.from_pretrained(folder, trust_remote_code=False)
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError) as problem:
            raise CheckpointError(f"{source}: cannot be loaded as a token classifier: {problem!s:.200}") from None
        kind, labels = model.config.model_type, model.config.num_labels
        if kind not in _HASHES or labels != 2:
            raise ConfigError(
                f"{source}: texts are shortened by a token classifier of the types {' or '.join(_HASHES)} with 2 "
                f"labels, not by {kind} with {labels}"
            )
        self.model, self.config, self.tokens = model.eval(), config, tokens
        self._hashes = _HASHES[kind]
        positions = model.config.max_position_embeddings - (0 if self._hashes else model.config.pad_token_id + 1)
        self._most = min(_MOST, positions) - 2

    def __call__(self, text: str) -> str:
        """The text with the words that stay."""
        if self.config.rate == 1:
            return text
        parts = _TIMES.split(text)
        return "".join(part if place % 2 else self._shortened(part) for place, part in enumerate(parts))

    def _shortened(self, text: str) -> str:
        """A text without times; the white space around it stays."""
        inside = text.strip()
        if not inside:
            return text
        encoded = self.tokenizer(inside, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids, places = encoded["input_ids"], encoded["offset_mapping"]
        pieces = self.tokenizer.convert_ids_to_tokens(ids)
        released = self.config.compat == "released"
        spaced = None if released else [_is_spaced(inside, begin) for begin, _ in places]
        chunks = []
        for run in chunks_of(pieces, self._most - 1, spaced):
            words = words_of(
                pieces[run], self._probabilities(ids[run]), self.config, hashes=self._hashes,
                spaced=None if spaced is None else spaced[run],
            )  # fmt: skip
            chunks.append(text_of(words, labels_of(words, self.config, self.tokens)))
        short = ("" if released else " ").join(filter(None, chunks))
        begin, end = len(text) - len(text.lstrip()), len(text.rstrip())
        return text[:begin] + short + text[end:]

    @torch.no_grad()
    def _probabilities(self, ids: list[int]) -> list[float]:
        """N: the probability that each piece stays."""
        tokenizer = self.tokenizer
        first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
        if self.config.compat == "released" and not self._hashes:
            first = last = tokenizer.unk_token_id
        given = torch.tensor([[first, *ids, last]], device=self.model.device)
        probabilities = self.model(given).logits[0, 1:-1].float().softmax(-1)[:, 1]
        return [float(value) for value in probabilities]


def _is_spaced(text: str, begin: int) -> bool:
    """Whether white space stands before, or at, the place where a piece begins."""
    return begin > 0 and (text[begin - 1].isspace() or text[begin : begin + 1].isspace())
