"""A word-level tokenizer over a closed vocabulary, for small models that are trained from scratch."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer that knows exactly these words and punctuation marks, in lower case.

    Text is lower-cased and split at white space and punctuation; what is not known becomes `<unk>`.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *dict.fromkeys(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), behavior="removed", invert=True)
    # joins words with spaces, punctuation without; no word is a continuation, hence a prefix that none has
    tokenizer.decoder = decoders.WordPiece(prefix="\u0000", cleanup=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
