"""LLMLingua-2's choice of words equals that of the released code; numbers survive beside it."""

import json
import random
from itertools import pairwise
from pathlib import Path

import pytest

from mmllm.errors import ConfigError
from mmllm.preprocessing.llmlingua2 import LlmLingua2Config, chunks_of, labels_of, text_of, words_of

GOLDEN = json.loads((Path(__file__).parent.parent / "data" / "context-llmlingua2.json").read_text())
UNKNOWN = ("<unk>",)


def tokens(word: str) -> int:
    """How the golden file counts an LLM's tokens."""
    return max(1, (len(word) + 2) // 3)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"{case['rate']} {case['options']}")
def test_words_labels_and_text_are_those_of_the_original(case):
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in case["options"].items()}
    config = LlmLingua2Config(rate=case["rate"], numbers=False, compat="released", **options)
    words, labels = [], []
    for pieces, probabilities in zip(case["pieces"], case["probabilities"], strict=True):
        own = words_of(pieces, probabilities, config, special=UNKNOWN)
        words.append(own)
        labels.append(labels_of(own, config, tokens))
    assert [word.text for own in words for word in own] == case["words"]
    assert [int(stays) for own in labels for stays in own] == case["labels"]
    assert len(words) == len(case["chunks"])
    released = LlmLingua2Config(rate=0.5, numbers=False, compat="released")
    assert [text_of(words_of(p, [1.0] * len(p), released, special=UNKNOWN), [True] * len(own))
            for p, own in zip(case["pieces"], words, strict=True)] == case["chunks"]  # fmt: skip


def test_texts_are_cut_into_the_chunks_of_the_original():
    case = GOLDEN["cases"][0]
    own = [[piece for piece in pieces if piece not in UNKNOWN] for pieces in case["pieces"]]
    whole = [piece for pieces in own for piece in pieces]
    assert [whole[run] for run in chunks_of(whole, 24 - 2)] == own
    assert chunks_of([], 22) == []
    assert chunks_of(["a"] * 50, 22) == [slice(0, 23), slice(23, 46), slice(46, 50)]  # no end of a sentence


def test_no_number_is_cut_where_spaces_are_known():
    pieces = ["At", "12", ".", "5", "s", "it", "stops", "."]
    spaced = [False, True, False, False, True, True, True, False]
    assert chunks_of(pieces, 3) == [slice(0, 3), slice(3, 7), slice(7, 8)]  # as released: behind the point of 12.5
    assert chunks_of(pieces, 4, spaced) == [slice(0, 5), slice(5, 8)]
    assert chunks_of(pieces, 3, spaced) == [slice(0, 4), slice(4, 8)]


def drawn(seed: int):
    """Random pieces of words and numbers."""
    state = random.Random(seed)
    pieces = []
    for _ in range(state.randint(5, 60)):
        pieces += state.choice([["▁12", ".", "5"], ["▁a"], ["▁se", "co", "nds"], [","], ["▁7"], ["▁at"], [".", "▁B"]])
    return pieces, [state.random() for _ in pieces]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_every_number_stays_and_words_stay_in_order(seed, rate):
    pieces, probabilities = drawn(seed)
    config = LlmLingua2Config(rate=rate)
    words = words_of(pieces, probabilities, config)
    labels = labels_of(words, config, tokens)
    kept = text_of(words, labels)
    whole = text_of(words, [True] * len(words))
    assert kept.count("12.5") == whole.count("12.5")
    assert kept.count("7") == whole.count("7")
    rest = iter(whole.replace(" ", ""))
    assert all(letter in rest for letter in kept.replace(" ", ""))  # a subsequence


def test_a_higher_rate_keeps_all_that_a_lower_one_keeps():
    pieces, probabilities = drawn(3)
    kept = []
    for rate in (0.2, 0.4, 0.6, 0.8):
        config = LlmLingua2Config(rate=rate, numbers=False)
        words = words_of(pieces, probabilities, config)
        kept.append({place for place, stays in enumerate(labels_of(words, config, tokens)) if stays})
    assert kept[0] < kept[-1]
    assert all(fewer <= more for fewer, more in pairwise(kept))


def test_pieces_of_mbert_and_given_spaces():
    config = LlmLingua2Config(rate=0.5)
    pieces, spaced = ["12", ".", "5", "sec", "##onds"], [True, False, False, True, False]
    words = words_of(pieces, [0.1, 0.1, 0.1, 0.2, 0.4], config, hashes=True, spaced=spaced)
    assert [word.text for word in words] == ["12", ".", "5", "seconds"]
    assert labels_of(words, config, tokens) == [True, True, True, False]
    assert text_of(words, [True] * 4) == "12.5 seconds"


def test_nothing_stays_nothing():
    assert labels_of([], LlmLingua2Config(), tokens) == []
    assert words_of(["<unk>"], [0.5], LlmLingua2Config(), special=UNKNOWN) == []


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rate": 0.0}, "rate"),
        ({"rate": 1.1}, "rate"),
        ({"rate": float("nan")}, "rate"),
        ({"token_to_word": "last"}, "mean or first"),
        ({"compat": "new"}, "fixed or released"),
    ],
)
def test_settings_that_cannot_work_are_refused(values, said):
    with pytest.raises(ConfigError, match=said):
        LlmLingua2Config(**values)
