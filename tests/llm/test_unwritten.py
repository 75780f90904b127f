"""Tensors are the same as long as nobody puts others in their place or writes to them."""

import torch

from mmllm.llm.unwritten import Unwritten


def test_the_same_tensors_are_unwritten():
    tensors = [torch.zeros(3), torch.ones(2, 2)]
    then = Unwritten.of(tensors)
    assert then.are(tensors)
    assert not then.are(tensors[::-1])
    assert not then.are(tensors[:1])
    assert not then.are([tensors[0], tensors[1].clone()])  # equal numbers are no proof
    tensors[1][0, 0] = 5.0
    assert not then.are(tensors)


def test_nothing_is_known_of_tensors_that_are_gone_or_are_not_counted():
    tensors = [torch.zeros(3)]
    then = Unwritten.of(tensors)
    tensors[0] = torch.zeros(3)
    assert not then.are(tensors)
    with torch.inference_mode():
        assert Unwritten.of([torch.zeros(3)]) is None
