"""Similarity of two texts, without a judge: F1 over words, and ROUGE-L.

Both compare lower-cased words without punctuation and lie between 0 and 1. Two texts without words have similarity 1.
If only one of them has words, it is 0.
"""

from __future__ import annotations

import re
from collections import Counter

_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """The words of a text in lower case, punctuation dropped."""
    return _WORD.findall(text.lower())


def token_f1(answer: str, truth: str) -> float:
    """F1 over words, as in reading comprehension (SQuAD, arXiv 1606.05250), but articles count.

    Order does not matter. A word that occurs twice has to be matched twice.
    """
    answer_words, true_words = words(answer), words(truth)
    return _f1((Counter(answer_words) & Counter(true_words)).total(), len(answer_words), len(true_words))


def rouge_l(answer: str, truth: str) -> float:
    """F1 of the longest common subsequence of words (ROUGE-L, Lin 2004, with equal weight of precision and recall)."""
    answer_words, true_words = words(answer), words(truth)
    longest = [0] * (len(true_words) + 1)  # [j]: longest common subsequence of the answer so far and true_words[:j]
    for word in answer_words:
        diagonal = 0  # longest[j - 1] before this word
        for j, true_word in enumerate(true_words, start=1):
            extended = diagonal + 1 if word == true_word else max(longest[j], longest[j - 1])
            diagonal, longest[j] = longest[j], extended
    return _f1(longest[-1], len(answer_words), len(true_words))


def _f1(common: int, answer_count: int, true_count: int) -> float:
    total = answer_count + true_count
    return 2 * common / total if total else 1.0
