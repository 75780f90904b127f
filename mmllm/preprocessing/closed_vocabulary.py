"""A word-level tokenizer over a closed vocabulary, for small models that are trained from scratch."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
CONTINUED = "\u0000"
"""Stands before the second and each further piece of a number; no word begins with it."""
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
    whole = r"\d+\.\d+|\w+|[^\w\s]" if numbers else r"\w+|[^\w\s]"
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(whole), behavior="removed", invert=True)
    # joins words with spaces, punctuation and digits without
    together = decoders.WordPiece(prefix=CONTINUED, cleanup=True)
    stamps = [decoders.Fuse(), decoders.Replace("< ", "<"), decoders.Replace(" >", ">")]
    tokenizer.decoder = decoders.Sequence([together, *stamps]) if numbers else together
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
