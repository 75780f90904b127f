"""Text to ids piece by piece, and ids to text: placeholders and time tokens are words of one id each.

L text positions, B texts
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mmllm.errors import InputError
from mmllm.preprocessing.closed_vocabulary import is_word_tokenizer
from mmllm.preprocessing.foreign_code import within_deadline
from mmllm.preprocessing.text_options import TextOptions
from mmllm.times.vocabulary import TimeTokens
from mmllm.tokens import IGNORED


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """A conversation as ids, with labels where it is trained on."""

    input_ids: Tensor
    """int64, L."""
    labels: Tensor
    """int64, L; -100 everywhere but at the assistant's tokens."""


class TextEncoding:
    """What the processor does with text; its options are those of `MmllmProcessor`."""

    tokenizer: PreTrainedTokenizerBase
    time_tokens: TimeTokens | None
    strip_time_tokens: bool | Literal["spaces"]
    whole_text: bool
    placeholder_ids: Mapping[str, int]
    """Word -> id of each placeholder."""

    def encode(
        self, text: str, spoken_ranges: Sequence[tuple[int, int]] = (), add_special_tokens: bool | None = None
    ) -> Encoded:
        """Ids of a text; labels where it lies in one of the character ranges `spoken_ranges`.

        Placeholders and time tokens are split off first, and the text between them is encoded piece by piece, unless
        the tokenizer is given the whole text.

        Args:
            text: with placeholders.
            spoken_ranges: what the assistant says.
            add_special_tokens: whether the tokenizer adds its first tokens. None: to a whole text that does not begin
                with them. A text that is encoded piece by piece holds them itself.

        Raises:
            InputError: if special tokens are to be added piece by piece.
        """
        if self.whole_text:
            begun = text.startswith(self.tokenizer.bos_token or "\0")
            adds = not begun if add_special_tokens is None else add_special_tokens
            (out,) = self._tokenized([text], add_special_tokens=adds, return_offsets_mapping=True)
            return _labelled(
                out["input_ids"], [max(end - 1, begin) for begin, end in out["offset_mapping"]], spoken_ranges
            )
        if add_special_tokens:
            raise InputError(
                "add_special_tokens=True cannot be honoured: this processor encodes text piece by piece, and the chat "
                "template writes the special tokens"
            )
        pieces = list(self._pieces(text))
        texts = [piece for _, piece in pieces if piece not in self._single]
        outputs = iter(self._tokenized(texts, add_special_tokens=False, return_offsets_mapping=True))
        ids: list[int] = []
        starts: list[int] = []
        for start, piece in pieces:
            token = self._single.get(piece)
            if token is not None:
                ids.append(token)
                starts.append(start)
                continue
            out = next(outputs)
            ids += out["input_ids"]
            # an offset may begin at the space before a word, so the place of its last character is taken
            starts += [start + max(end - 1, begin) for begin, end in out["offset_mapping"]]
        return _labelled(ids, starts, spoken_ranges)

    def _tokenized(self, texts: Sequence[str], **options: Any) -> list[Any]:
        """What the tokenizer makes of each text. One of ours is not waited for in a thread: that costs more than it
        does.

        Raises:
            InputError: if it takes too long, or fails inside.
        """
        if self._needs_no_deadline:
            return [self.tokenizer(text, **options) for text in texts]
        return within_deadline(lambda: [self.tokenizer(text, **options) for text in texts])

    @property
    def _needs_no_deadline(self) -> bool:
        """Whether the tokenizer is one of ours."""
        if "_is_ours" not in self.__dict__:
            self.__dict__["_is_ours"] = is_word_tokenizer(self.tokenizer)
        return bool(self.__dict__["_is_ours"])

    @property
    def _single(self) -> dict[str, int]:
        """Words that are one id each and never go through the tokenizer's pieces."""
        if "_single_words" not in self.__dict__:
            words = list(self.time_tokens.strings if self.time_tokens else ())
            times = dict(zip(words, self.tokenizer.convert_tokens_to_ids(words), strict=True))
            self.__dict__["_single_words"] = {**times, **self.placeholder_ids}
        return self.__dict__["_single_words"]

    def _pieces(self, text: str) -> Iterator[tuple[int, str]]:
        """Where each piece of a text begins, and the piece: words that are one id, and the text between them."""
        word = "|".join([r"<t\d+>", *map(re.escape, self.placeholder_ids)])
        stripped = " " if self.strip_time_tokens == "spaces" else None  # None: all white space
        for match in re.finditer(rf"{word}|.+?(?={word}|\Z)", text, flags=re.DOTALL):
            start, piece = match.start(), match[0]
            if piece not in self._single and self.strip_time_tokens:
                before, after = text[:start], text[match.end() :]
                if re.search(r"<t\d+>$", before):
                    start, piece = start + len(piece) - len(piece.lstrip(stripped)), piece.lstrip(stripped)
                if re.match(r"<t\d+>", after):
                    piece = piece.rstrip(stripped)
            if piece:
                yield start, piece

    def collate(
        self, encoded: Sequence[Encoded], with_labels: bool = False, options: TextOptions | None = None
    ) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask` and, if asked for, `labels`, padded to B L; on the right without options."""
        options = options or TextOptions()
        ids = [options.shortened(text.input_ids) for text in encoded]
        batch = {"input_ids": options.padded(ids, self.tokenizer.pad_token_id or 0)}
        if options.return_attention_mask:
            batch["attention_mask"] = options.padded([torch.ones_like(row) for row in ids], 0)
        if with_labels:
            batch["labels"] = options.padded([options.shortened(text.labels) for text in encoded], IGNORED)
        return batch

    def decode_text(self, token_ids: Any) -> str:
        """Ids as text, with time tokens as words and without special tokens."""
        ids = token_ids.tolist() if isinstance(token_ids, Tensor) else list(token_ids)
        words = {token: word for word, token in self._single.items()}
        special = {*self.tokenizer.all_special_ids, *self.placeholder_ids.values()}
        text: list[str] = []
        run: list[int] = []
        for token in [*ids, None]:
            if token is None or token in words or token in special:
                if run:
                    text.append(self.tokenizer.decode(run).strip())
                run = []
                if token in words and token not in special:
                    text.append(words[token])
            else:
                run.append(token)
        return " ".join(filter(None, text))


def _labelled(ids: Sequence[int], places: Sequence[int], spoken_ranges: Sequence[tuple[int, int]]) -> Encoded:
    """Ids with labels where the place of an id in the text lies in one of the ranges `spoken_ranges`."""
    input_ids = torch.tensor(ids, dtype=torch.long)
    labelled = torch.tensor([any(a <= at < b for a, b in spoken_ranges) for at in places], dtype=torch.bool)
    return Encoded(input_ids=input_ids, labels=input_ids.where(labelled, torch.tensor(IGNORED)))
