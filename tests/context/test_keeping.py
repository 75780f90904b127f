"""Which keys stay: against lists of slots, with padding, protected keys and ties."""

import random

import pytest
import torch

from mmllm.context.budgets import count_of
from mmllm.context.keeping import best_keys, first_keys, heavy_and_recent, kept_keys, recent_keys
from mmllm.errors import InputError


def drawn(seed, rows=3, heads=2, keys=12):
    generator = torch.Generator().manual_seed(seed)
    score = torch.randint(0, 5, (rows, heads, keys), generator=generator).float()  # with ties
    free = (torch.rand(rows, 1, keys, generator=generator) < 0.7).expand(-1, heads, -1)
    return score, free


@pytest.mark.parametrize("seed", range(20))
def test_against_lists_of_slots(seed):
    score, free = drawn(seed)
    heavy, recent = (torch.tensor([random.Random(seed + row).randint(0, 5) for row in range(3)]) for _ in range(2))
    stay = heavy_and_recent(score, free, heavy, recent)
    for row in range(3):
        for head in range(2):
            slots = free[row, head].nonzero().flatten().tolist()
            count = int(recent[row])
            near = slots[len(slots) - count :] if count else []
            older = [slot for slot in slots if slot not in near]
            best = sorted(older, key=lambda slot, b=row, h=head: (-float(score[b, h, slot]), slot))[: int(heavy[row])]
            assert stay[row, head].nonzero().flatten().tolist() == sorted([*near, *best])
    assert torch.equal(first_keys(free, heavy) | recent_keys(free, recent), free & (
        (free.cumsum(-1) <= heavy[:, None, None]) | (free.flip(-1).cumsum(-1).flip(-1) <= recent[:, None, None])
    ))  # fmt: skip


def test_filling_stands_in_front_and_nothing_is_made_of_what_stays():
    stay = torch.tensor([[[True, False, True, True]], [[False, False, False, True]]])
    valid = torch.ones_like(stay)
    kept = kept_keys(stay, valid)
    assert kept.index[0, 0].tolist() == [0, 2, 3]
    assert kept.index[1, 0, -1] == 3
    assert kept.valid.tolist() == [[[True, True, True]], [[False, False, True]]]
    assert kept_keys(valid, valid) is None
    assert kept_keys(stay, stay) is None  # only padding would go


def test_scores_that_are_no_numbers():
    score, free = torch.tensor([[[1.0, torch.nan, 2.0]]]), torch.tensor([[[True, False, True]]])
    assert best_keys(score, free, torch.tensor([1])).tolist() == [[[False, False, True]]]
    with pytest.raises(InputError, match="not a number"):
        best_keys(score, torch.ones_like(free), torch.tensor([1]))


@pytest.mark.parametrize(
    ("budget", "real", "count"), [(0.29, 100, 29), (0.1, 39, 3), (1.0, 7, 7), (64, 7, 64), (0.01, 7, 1), (2, 100, 2)]
)
def test_shares_and_counts(budget, real, count):
    assert count_of(budget, real) == count
    assert count_of(budget, real, least=0) == (0 if budget * real < 1 else count)
