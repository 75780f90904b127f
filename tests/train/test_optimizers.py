"""Muon: its effect on a matrix, the weights that it trains, and that its training can be resumed."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from mmllm.errors import ConfigError
from mmllm.train.fitting import fit
from mmllm.train.optimizers import give_rates, muon, nearly_orthogonal
from mmllm.train.schedule import TrainingSchedule


def test_singular_values_come_near_one_and_directions_stay():
    torch.manual_seed(0)
    for shape in ((8, 24), (24, 8), (16, 16)):
        matrix = torch.randn(shape)
        orthogonal = nearly_orthogonal(matrix)
        values = torch.linalg.svdvals(orthogonal)
        assert values.min() > 0.3
        assert values.max() < 1.3
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        assert (u.T @ orthogonal @ v.T).diagonal().min() > 0.3


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(10, 8)
        self.convolution = nn.Conv2d(3, 4, 2)
        self.linear = nn.Linear(8, 8)
        self.out = nn.Linear(8, 10, bias=False)
        self.out.weight = self.words.weight
        self.head = nn.Linear(8, 2)


def test_it_takes_kernels_but_no_embeddings_heads_biases_or_frozen_weights():
    model = Small()
    model.convolution.weight.requires_grad_(False)
    optimizer = muon(model, TrainingSchedule(matrix_learning_rate=0.02, weight_decay=0.1), heads=("head",))
    taken = [weight for group in optimizer.param_groups if group["orthogonal"] for weight in group["params"]]
    assert [id(weight) for weight in taken] == [id(model.linear.weight)]
    others = [weight for group in optimizer.param_groups if not group["orthogonal"] for weight in group["params"]]
    ids = {id(weight) for weight in others}
    assert {id(model.words.weight), id(model.head.weight), id(model.linear.bias)} <= ids
    assert id(model.convolution.weight) not in ids
    decayed = {id(w) for g in optimizer.param_groups if g["weight_decay"] for w in g["params"]}
    assert id(model.linear.bias) not in decayed


def test_what_it_leaves_alone_is_trained_as_by_adamw():
    torch.manual_seed(0)
    start = nn.Embedding(5, 3)
    results = []
    for ours in (True, False):
        model = nn.Embedding(5, 3)
        model.load_state_dict(start.state_dict())
        schedule = TrainingSchedule(learning_rate=0.01, matrix_learning_rate=0.02, weight_decay=0.1, adam_beta2=0.98)
        optimizer = (
            muon(model, schedule)
            if ours
            else torch.optim.AdamW(model.parameters(), 0.01, betas=(0.9, 0.98), weight_decay=0.1)
        )
        for step in range(5):
            optimizer.zero_grad()
            (model.weight**2 * (step + 1)).sum().backward()
            optimizer.step()
        results.append(model.weight.detach())
    torch.testing.assert_close(*results)


def test_it_goes_on_from_saved_state_as_if_never_stopped():
    schedule = TrainingSchedule(learning_rate=0.01, matrix_learning_rate=0.02)

    def run(steps, model, optimizer):
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.eye(4)).square().sum().backward()
            optimizer.step()

    torch.manual_seed(0)
    model = nn.Linear(4, 6)
    optimizer = muon(model, schedule)
    run(3, model, optimizer)
    other = nn.Linear(4, 6)
    other.load_state_dict(model.state_dict())
    again = muon(other, schedule)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(3, model, optimizer)
    run(3, other, again)
    torch.testing.assert_close(model.weight, other.weight)
    torch.testing.assert_close(model.bias, other.bias)


@pytest.mark.parametrize("matrix_rate", [0.0, 0.02])
def test_a_part_has_its_own_learning_rate(tmp_path, matrix_rate):
    training = TrainingSchedule(
        learning_rate=0.1, learning_rates={"head": 0.02}, matrix_learning_rate=matrix_rate, max_steps=1, batch_size=1
    )
    model = Small()
    optimizer = muon(model, training) if matrix_rate else torch.optim.AdamW(model.parameters(), lr=0.1)
    weights = dict(model.named_parameters())
    for _ in range(2):  # the second call changes nothing
        give_rates(optimizer, weights, training)
    rates = {id(weight): group["lr"] for group in optimizer.param_groups for weight in group["params"]}
    assert len(rates) == len(weights)
    for name, weight in weights.items():
        matrix = matrix_rate and name in ("convolution.weight", "linear.weight", "head.weight")
        whole = matrix_rate if matrix else 0.1
        assert rates[id(weight)] == pytest.approx(whole * (0.2 if name.startswith("head.") else 1.0)), name
    assert all(group["params"] for group in optimizer.param_groups)
    with pytest.raises(ConfigError, match="learning_rates: the model has no part 'heads'; did you mean 'head'"):
        fit(Small(), [0], list, replace(training, learning_rates={"heads": 0.1}), tmp_path, what="nothing", seed=0)
    with pytest.raises(ConfigError, match="must be rates above zero"):
        replace(training, learning_rates={"head": 0.0})
