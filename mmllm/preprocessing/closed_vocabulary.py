"""A word-level tokenizer over a closed vocabulary, for small models that are trained from scratch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
CONTINUED = "\u0000"
"""Stands before the second and each further piece of a number; no word begins with it."""
_WHOLE = {True: r"\d+\.\d+|\w+|[^\w\s]", False: r"\w+|[^\w\s]"}
"""With numbers or without -> the pattern of what is looked up as a whole."""
_LONGEST = 100
"""Characters of the longest word that is cut into pieces."""
_CONTINUES: dict[bool, dict[str, str]] = {True: {"continuing_subword_prefix": CONTINUED}, False: {}}


def word_tokenizer(words: Sequence[str], numbers: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer that knows exactly these words and punctuation marks, in lower case.

    Text is lower-cased and split at white space and punctuation; what is not known becomes `<unk>`.

    Args:
        words: what it knows.
        numbers: also numbers, digit by digit, and stamps such as `<12.3>` and `12.3 s:`.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    pieces = [*"0123456789<>s:", *(CONTINUED + digit for digit in "0123456789.")] if numbers else []
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*SPECIAL, *words, *pieces]))}
    kind = models.WordPiece if numbers else models.WordLevel
    tokenizer = Tokenizer(kind(vocabulary, unk_token="<unk>", **_CONTINUES[numbers]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_WHOLE[numbers]), behavior="removed", invert=True)
    # joins words with spaces, punctuation and digits without
    together = decoders.WordPiece(prefix=CONTINUED, cleanup=True)
    stamps = [decoders.Fuse(), decoders.Replace("< ", "<"), decoders.Replace(" >", ">")]
    tokenizer.decoder = decoders.Sequence([together, *stamps]) if numbers else together
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def is_word_tokenizer(tokenizer: Any) -> bool:
    """Whether a tokenizer works as those of `word_tokenizer`, whose time grows with the length of a text and no faster.

    Args:
        tokenizer: of transformers.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return False
    from tokenizers import models

    if not isinstance(backend.model, models.WordLevel | models.WordPiece):
        return False  # others are large: they are not written out to be looked at
    settings = json.loads(backend.to_str())
    model, split = settings["model"], settings["pre_tokenizer"] or {}
    return bool(
        settings["normalizer"] == {"type": "Lowercase"}
        and split.get("type") == "Split"
        and split["pattern"].get("Regex") in _WHOLE.values()
        and model.get("max_input_chars_per_word", 0) <= _LONGEST
    )
