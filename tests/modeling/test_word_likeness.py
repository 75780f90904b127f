"""The soft maximum of cosines, by hand."""

import math

import torch
from nearness import assert_near

from mmllm.modeling.word_likeness import SHARPNESS, word_likeness


def test_it_is_the_soft_maximum_of_the_cosines_by_hand():
    torch.manual_seed(0)
    tokens, words = torch.randn(2, 3, 8), torch.nn.functional.normalize(torch.randn(4, 8), dim=-1)
    likeness = word_likeness(tokens, words)
    for t, w in ((0, 0), (1, 3)):
        cosines = [float(torch.cosine_similarity(token, words[w], dim=0)) for token in tokens[t]]
        expected = math.log(sum(math.exp(SHARPNESS * value) for value in cosines) / 3) / SHARPNESS
        assert math.isclose(likeness[t, w], expected, abs_tol=1e-5)
        assert sum(cosines) / 3 <= likeness[t, w] + 1e-6
        assert likeness[t, w] <= max(cosines) + 1e-6


def test_equal_tokens_give_their_cosine_and_masked_ones_do_not_count():
    token, words = torch.randn(8), torch.nn.functional.normalize(torch.randn(4, 8), dim=-1)
    expected = torch.nn.functional.normalize(token, dim=0) @ words.T
    assert_near(word_likeness(token.expand(5, 8), words), expected)
    tokens = torch.stack([token, token, torch.randn(8)])
    assert_near(word_likeness(tokens, words, torch.tensor([True, True, False])), expected)


def test_one_token_of_many_is_enough():
    words = torch.eye(8)
    tokens = torch.eye(8)[[0, 1, 1, 1, 1, 1, 1, 1]]
    rare, frequent, none = word_likeness(tokens, words)[:3]
    assert rare > 0.85
    assert frequent > rare
    assert none == 0
