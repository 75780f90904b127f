"""The greedy choice of a determinantal point process against determinants of all candidates."""

import pytest
import torch

from mmllm.errors import InputError
from mmllm.pruning.determinantal import determinantal_order, relevance_kernel


def random_kernel(partitions=1, tokens=14, width=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    relevance = torch.rand(partitions, tokens, generator=generator) + 0.1
    return relevance_kernel(torch.randn(partitions, tokens, width, generator=generator), relevance), relevance


def by_determinants(kernel, count):
    """Each time the token with which the determinant is largest, of all that are left."""
    chosen = []
    for _ in range(count):
        left = [token for token in range(len(kernel)) if token not in chosen]
        chosen.append(
            max(left, key=lambda token: float(torch.linalg.det(kernel.double()[[*chosen, token]][:, [*chosen, token]])))
        )
    return chosen


@pytest.mark.parametrize("seed", range(5))
def test_each_choice_has_the_largest_determinant(seed):
    kernel, relevance = random_kernel(partitions=3, seed=seed)
    order = determinantal_order(kernel, relevance, 9)
    assert order.tolist() == [by_determinants(own, 9) for own in kernel]


def test_the_kernel_is_relevance_times_cosine_times_relevance():
    features = torch.tensor([[[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]])
    kernel = relevance_kernel(features, torch.tensor([[1.0, 0.5, 2.0]]))[0]
    expected = torch.tensor([[1.0, 0.5 * 0.5**0.5, 0.0], [0.5 * 0.5**0.5, 0.25, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(kernel, expected)


def test_fewer_are_the_first_of_more_and_none_comes_twice():
    kernel, relevance = random_kernel(partitions=2)
    order = determinantal_order(kernel, relevance, 14)
    assert torch.equal(determinantal_order(kernel, relevance, 5), order[:, :5])
    assert order.sort(-1).values.tolist() == [list(range(14))] * 2


def test_once_no_token_differs_the_most_relevant_follow():
    """Tokens on two lines: after one of each, every other is a mixture."""
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 2.0], [0.0, 0.0]])[None]
    relevance = torch.tensor([[0.3, 0.9, 0.5, 0.8, 0.7, 1.0]])
    order = determinantal_order(relevance_kernel(features, relevance), relevance, 6)[0].tolist()
    assert order == [1, 4, 5, 3, 2, 0]


def test_of_equal_tokens_the_earlier_come_first():
    ones = torch.ones(1, 5)
    assert determinantal_order(relevance_kernel(torch.ones(1, 5, 3), ones), ones, 4)[0].tolist() == [0, 1, 2, 3]
    unlike = relevance_kernel(torch.eye(5)[None], ones)
    assert determinantal_order(unlike, ones, 4)[0].tolist() == [0, 1, 2, 3]


def test_masked_tokens_come_last():
    kernel, relevance = random_kernel()
    mask = torch.arange(14) % 3 > 0
    order = determinantal_order(kernel, relevance, 14, mask[None])[0]
    assert mask[order].tolist() == [True] * 9 + [False] * 5
    inside = mask.nonzero()[:, 0]
    alone = determinantal_order(kernel[:, inside][:, :, inside], relevance[:, inside], 9)[0]
    assert torch.equal(order[:9], inside[alone])


def test_bad_input():
    kernel, relevance = random_kernel()
    for count in (0, 15):
        with pytest.raises(InputError, match="1 to 14 tokens"):
            determinantal_order(kernel, relevance, count)
    with pytest.raises(InputError, match="finite"):
        relevance_kernel(torch.full((1, 3, 2), torch.nan), torch.ones(1, 3))
