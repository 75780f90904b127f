"""LLMLingua-2: which words of a text stay, by the probability that a classifier gives each of its pieces (2403.12968).

    pieces  _At  _12   .   5  _seco nds  ->  words  At  12  .5  seconds  ->  those above a percentile of the chunk
             .74 .03 .03 .98   .37  .44              .74 .03  .51   .40

A word weighs as many times as the LLM has tokens for it. Words in order, nothing is written anew.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mmllm.fields import require

MARKER = "\u2581"
"""In front of a piece of XLM-R that begins a word."""
CHUNK_ENDS = (".", "\n")
"""A chunk is cut behind one of these pieces, if it has one."""


@dataclass(frozen=True, kw_only=True)
class LlmLingua2Config:
    """How much stays of a text, and what in any case. Names are those of the released code."""

    rate: float = 0.5
    """Share of the LLM's tokens that stays, about; 1 for the text as it is."""
    token_to_word: Literal["mean", "first"] = "mean"
    """The probability of a word: the mean of its pieces', or that of the first."""
    force_tokens: tuple[str, ...] = ()
    """Words that stay."""
    force_reserve_digit: bool = False
    """Whether pieces with a digit count as certain, which raises the mean of their word: as released."""
    drop_consecutive: bool = False
    """Whether a word of `force_tokens` goes that follows itself with nothing probable in between."""
    numbers: bool = True
    """Whether words with a digit stay, and marks between digits: a number that is torn apart is another number."""
    compat: Literal["fixed", "released"] = "fixed"
    """released: chunks are glued without a space, XLM-R gets its unknown word as first and last token, and the LLM's
    tokens of a word are counted with XLM-R's marker in front in place of a space."""

    def __post_init__(self) -> None:
        require(0 < self.rate <= 1, self, "rate", "above 0, at most 1")
        require(self.token_to_word in ("mean", "first"), self, "token_to_word", "mean or first")
        require(self.compat in ("fixed", "released"), self, "compat", "fixed or released")


@dataclass(eq=False)
class Word:
    """A word of a text, put together from pieces."""

    text: str
    spaced: bool
    """Whether a space stands before it."""
    certain: list[float]
    """The probability of each piece, 1 where it is forced."""


def chunks_of(pieces: Sequence[str], most: int, spaced: Sequence[bool] | None = None) -> list[slice]:
    """Runs of at most `most` + 1 pieces, each cut back behind its last end of a sentence if it has one.

    Args:
        pieces: of the text.
        most: as released, one less than there may be.
        spaced: whether a space stands before each piece: then no word and no number is cut, if there is another place.
            None cuts as released, such as behind the point of 12.5.
    """
    runs, start = [], 0
    whole = [True] * len(pieces) if spaced is None else [*spaced[1:], True]
    while start < len(pieces):
        end = start + most
        if end > len(pieces) - 1:
            end = len(pieces) - 1
        else:
            places = [place for place in range(end, start, -1) if whole[place]]
            ends = [place for place in places if pieces[place] in CHUNK_ENDS]
            end = next(iter(ends or (places if spaced is not None else [])), end)
        runs.append(slice(start, end + 1))
        start = end + 1
    return runs


def words_of(
    pieces: Sequence[str],
    probabilities: Sequence[float],
    config: LlmLingua2Config,
    *,
    hashes: bool = False,
    special: Sequence[str] = (),
    spaced: Sequence[bool] | None = None,
) -> list[Word]:
    """The words of a chunk.

    Args:
        pieces: as the classifier's tokenizer writes them.
        probabilities: that each piece stays.
        config: what is forced.
        hashes: whether pieces that go on with a word begin with ##, as mBERT's do; else those that begin one begin with
            the marker, as XLM-R's do.
        special: pieces that are no text.
        spaced: whether a space stands before each piece; None to see it from the piece.
    """
    words: list[Word] = []
    for place, (piece, probability) in enumerate(zip(pieces, probabilities, strict=True)):
        if piece in special:
            continue
        text = piece.removeprefix("##") if hashes else piece.lstrip(MARKER)
        if hashes:
            begins = not piece.startswith("##") or text in config.force_tokens
        else:
            begins = piece.startswith(MARKER) or piece in string.punctuation or piece in config.force_tokens
        certain = 1.0 if config.force_reserve_digit and re.search(r"\d", piece) else probability
        if begins or not words:
            certain = 1.0 if text in config.force_tokens else certain
            before = (hashes or piece.startswith(MARKER)) if spaced is None else spaced[place]
            words.append(Word(text, before, [certain]))
        else:
            words[-1].text += text
            words[-1].certain.append(certain)
    return words


def labels_of(words: Sequence[Word], config: LlmLingua2Config, tokens: Callable[[str], int]) -> list[bool]:
    """Which words of a chunk stay.

    Args:
        words: of the chunk.
        config: how much stays.
        tokens: how many tokens the LLM has for a word, given with the space before it.
    """
    if not words:
        return []
    of_pieces = np.mean if config.token_to_word == "mean" else (lambda values: values[0])
    certain = [float(of_pieces(word.certain)) for word in words]
    if config.numbers:
        certain = [1.0 if _is_of_number(words, place) else value for place, value in enumerate(certain)]
    reduced = 1 - config.rate
    if config.drop_consecutive:
        _drop_repeated(words, certain, config, float(np.percentile(certain, int(100 * reduced))))
    space = MARKER if config.compat == "released" else " "
    counts = [tokens(space * word.spaced + word.text) for word in words]
    weighed = np.repeat(certain, counts)
    threshold = float(np.percentile(weighed, int(100 * reduced + 1)))
    labels, last = [], None
    for word, value in zip(words, certain, strict=True):
        stays = value > threshold or (threshold == 1.0 and value == threshold)
        if stays and config.drop_consecutive and word.text in config.force_tokens and word.text == last:
            stays = False
        last = word.text if stays else last
        labels.append(stays)
    return labels


def _drop_repeated(words: Sequence[Word], certain: list[float], config: LlmLingua2Config, threshold: float) -> None:
    """Sets to 0 what a forced word has that follows itself with nothing probable in between."""
    last, is_between = None, False
    for place, word in enumerate(words):
        if word.text not in config.force_tokens:
            is_between = is_between or certain[place] > threshold
            continue
        if not is_between and word.text == last:
            certain[place] = 0.0
        last, is_between = word.text, False


def _is_of_number(words: Sequence[Word], place: int) -> bool:
    """Whether a word has a digit, or is a mark between digits."""
    word = words[place]
    if re.search(r"\d", word.text):
        return True
    beside = 0 < place < len(words) - 1 and not word.spaced and not words[place + 1].spaced
    return beside and words[place - 1].text[-1:].isdigit() and words[place + 1].text[:1].isdigit()


def text_of(words: Sequence[Word], labels: Sequence[bool]) -> str:
    """The words that stay, with a space where there was one before any word since the last that stays."""
    text, waiting = "", False
    for word, stays in zip(words, labels, strict=True):
        waiting = waiting or word.spaced
        if stays:
            text += " " * (waiting and bool(text)) + word.text
            waiting = False
    return text
