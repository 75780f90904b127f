"""Random numbers by position: they look random, and no shape changes them."""

import torch

from mmllm.context.noise import gumbel, uniform


def test_numbers_are_spread_and_independent():
    drawn = uniform(0, torch.arange(300)[:, None], torch.arange(300))
    assert bool((drawn > 0).all() & (drawn < 1).all())
    shares = torch.histc(drawn, 20, 0, 1) / drawn.numel()
    assert float((shares - 0.05).abs().max()) < 0.004
    for shifted in (drawn.roll(1, 0), drawn.roll(1, 1), drawn.T):
        both = torch.corrcoef(torch.stack([drawn.flatten(), shifted.flatten()]))
        assert abs(float(both[0, 1])) < 0.02
    assert abs(float(gumbel(1, torch.arange(20000)).mean()) - 0.5772) < 0.03


def test_a_number_belongs_to_its_positions_whatever_is_asked_beside_it():
    head, query, key = torch.arange(3)[:, None, None], torch.arange(7)[:, None], torch.arange(9)
    whole = uniform(5, 2, head, query, key)
    assert whole.shape == (3, 7, 9)
    assert torch.equal(whole[1, 4:6, 3:8], uniform(5, 2, 1, query[4:6], key[3:8]))
    assert torch.equal(whole[2, 6, 8], uniform(5, 2, 2, 6, 8))
    assert not torch.equal(whole, uniform(6, 2, head, query, key))
    assert not torch.equal(whole, uniform(5, 3, head, query, key))
