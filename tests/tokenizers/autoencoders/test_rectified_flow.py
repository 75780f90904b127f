"""Rectified flow: its times, lengths and sampling, where the right value is known without a model."""

import math

import pytest
import torch

from mmllm.errors import ConfigError, InputError
from mmllm.tokenizers.autoencoders.rectified_flow import (
    Guidance,
    TrainingTimes,
    lengths,
    noised,
    sample,
    velocity_loss,
)


@pytest.mark.parametrize("steps", [1, 3, 20])
def test_the_true_velocity_leads_to_the_picture(steps):
    picture, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    seen = []

    def velocity(point, time, conditional):
        seen.append((float(time[0]), conditional))
        torch.testing.assert_close(point, noised(picture, noise, time), rtol=1e-5, atol=1e-5)
        return noise - picture

    torch.testing.assert_close(sample(velocity, noise, steps=steps), picture, rtol=1e-5, atol=1e-5)
    assert seen == [(pytest.approx(step / steps), True) for step in range(steps, 0, -1)]
    assert float(velocity_loss(noise - picture, picture, noise)) == 0


def test_a_scale_of_one_is_no_guidance_and_costs_nothing():
    calls = []

    def velocity(point, time, conditional):
        calls.append(conditional)
        return point * 0.5 if conditional else point

    noise = torch.randn(1, 2, 3, 3)
    assert torch.equal(sample(velocity, noise, steps=3, guidance=Guidance()), sample(velocity, noise, steps=3))
    assert calls == [True] * 6
    sample(velocity, noise, steps=2, guidance=Guidance(scale=2.0))
    assert calls[6:] == [True, False] * 2


def test_projected_guidance_is_bounded_and_across_the_velocity():
    conditional = torch.randn(1, 2, 8, 8)
    push = torch.randn(1, 2, 8, 8) * 100
    out = sample(
        lambda point, time, given: conditional if given else conditional - push,
        torch.zeros(1, 2, 8, 8),
        steps=1,
        guidance=Guidance(scale=2.0, projected=True),
    )
    added = -out - conditional
    assert float(added.norm()) <= 2.5 + 1e-4
    assert abs(float((added * conditional).sum())) < 1e-3


def test_times_have_their_densities():
    generator = torch.Generator().manual_seed(0)
    normal = TrainingTimes().draw(20_000, generator)
    assert abs(float(torch.logit(normal.double()).mean())) < 0.03
    assert abs(float(torch.logit(normal.double()).std()) - 1) < 0.03
    uniform = TrainingTimes(density="mode", mode_scale=0.0).draw(20_000, generator)
    assert abs(float(uniform.mean()) - 0.5) < 0.01
    given = torch.tensor([0.0, 0.25, 0.5, 1.0])
    by_hand = 1 - given - 0.25 * (torch.cos(math.pi * given / 2) ** 2 - 1 + given)
    torch.testing.assert_close(TrainingTimes(density="mode").from_uniform(given), by_hand)


def test_shifted_times_are_nearer_to_noise():
    given = torch.tensor([0.0, 0.25, 0.5, 1.0])
    shifted = TrainingTimes(density="mode", mode_scale=0.0, shift=3.0).from_uniform(1 - given)
    torch.testing.assert_close(shifted, torch.tensor([0.0, 0.5, 0.75, 1.0]))
    with pytest.raises(ConfigError, match="shift"):
        TrainingTimes(shift=0.0)


def test_stratified_times_have_one_in_each_share():
    times = TrainingTimes(density="mode", mode_scale=0.0, stratified=True).draw(8)
    assert sorted((times * 8).long().tolist()) == list(range(8))


@pytest.mark.parametrize(
    ("kind", "possible"),
    [("uniform", set(range(1, 17))), ("powers", {1, 2, 4, 8, 16}), ("uniform_powers", {1, 2, 4, 8, 16})],
)
def test_lengths(kind, possible):
    drawn = lengths(kind, 4000, 16, torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) == possible
    share = float((drawn == 16).float().mean())
    expected = {"uniform": 1 / 16, "powers": 1 / 5, "uniform_powers": 1 / 2}[kind]
    assert abs(share - expected) < 0.03


def test_bad_input():
    with pytest.raises(InputError, match="at least 1"):
        sample(lambda *_: None, torch.zeros(1, 1, 1, 1), steps=0)
    for scale in (math.nan, -1.0, math.inf):
        with pytest.raises(ConfigError, match="at least 0"):
            Guidance(scale=scale)
    with pytest.raises(ConfigError, match="mode_scale"):
        TrainingTimes(density="mode", mode_scale=3)
    with pytest.raises(InputError, match="uniform_powers"):
        lengths("random", 1, 4, None)
