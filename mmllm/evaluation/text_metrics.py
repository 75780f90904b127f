"""How alike two texts are, without a judge: F1 over words, and ROUGE-L.

Both look at lower-cased words without punctuation and lie between 0 and 1. Two texts without a word are equal; a text
without a word has nothing in common with one that has some.
"""

from __future__ import annotations

import re
from collections import Counter

_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """The words of a text in lower case, punctuation dropped."""
    return _WORD.findall(text.lower())


def token_f1(answer: str, truth: str) -> float:
    """F1 over words, as reading comprehension is scored (SQuAD, arXiv 1606.05250), but articles count.

    Order does not matter; a word that occurs twice has to be matched twice.
    """
    said, true = words(answer), words(truth)
    return _f1((Counter(said) & Counter(true)).total(), len(said), len(true))


def rouge_l(answer: str, truth: str) -> float:
    """F1 of the longest common subsequence of words (ROUGE-L, Lin 2004, with precision and recall weighed alike)."""
    said, true = words(answer), words(truth)
    longest = [0] * (len(true) + 1)  # after each word of the answer: longest common subsequence with true[:j]
    for word in said:
        before = 0
        for j, other in enumerate(true, start=1):
            before, longest[j] = longest[j], before + 1 if word == other else max(longest[j], longest[j - 1])
    return _f1(longest[-1], len(said), len(true))


def _f1(common: int, said: int, true: int) -> float:
    return 2 * common / (said + true) if said + true else 1.0
