"""The adversarial loss: who gets which gradient, what R1 and LeCAM compute, and the delayed start."""

import pytest
import torch
from torch import nn
from torch.nn.functional import softplus

from mmllm.errors import ConfigError
from mmllm.train.image_losses.adversarial import Adversarial, AdversarialConfig, squared_gradient

SMALL = {"width": 4, "most_width": 8}


def adversarial(progress=1.0, **fields):
    torch.manual_seed(0)
    made = Adversarial(AdversarialConfig(**{**SMALL, **fields}), 16)
    made.progress = progress
    return made


def pictures(seed):
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def gradients(module):
    return {name: weight.grad for name, weight in module.named_parameters() if weight.grad is not None}


def test_each_loss_has_a_gradient_for_its_side_alone():
    for name in ("adversarial", "discriminator", "r1", "lecam"):
        module, made = adversarial(lecam_decay=0.0), pictures(1).requires_grad_()
        losses = module(made, pictures(2))
        assert set(losses) == {"adversarial", "discriminator", "r1", "lecam"}
        losses[name].backward()
        if name == "adversarial":
            assert made.grad.any()
            assert not gradients(module)
        else:
            assert made.grad is None
            assert any(gradient.any() for gradient in gradients(module).values())


def test_one_backward_pass_gives_what_alternating_steps_would():
    """The gradients of the sum are those of the two losses, each computed with the other side held still."""
    module, made = adversarial(r1_weight=0.0, lecam_weight=0.0), pictures(1).requires_grad_()
    torch.stack(list(module(made, pictures(2)).values())).sum().backward()
    both = gradients(module)
    alone, judged = adversarial(r1_weight=0.0, lecam_weight=0.0).discriminator, pictures(1).requires_grad_()
    (0.1 * softplus(-alone(judged)).mean()).backward()
    torch.testing.assert_close(made.grad, judged.grad)
    alone.zero_grad()
    (softplus(-alone(pictures(2))).mean() + softplus(alone(pictures(1))).mean()).backward()
    for name, weight in alone.named_parameters():
        torch.testing.assert_close(both[f"discriminator.{name}"], weight.grad)


def test_r1_of_a_linear_score_is_the_square_of_its_weights():
    line = nn.Linear(12, 1, bias=False)
    images = torch.rand(5, 3, 2, 2, requires_grad=True)
    penalty = squared_gradient(line(images.flatten(1)).squeeze(-1), images)
    torch.testing.assert_close(penalty, line.weight.square().sum())
    penalty.backward()
    torch.testing.assert_close(line.weight.grad, 2 * line.weight.detach())


def test_lecam_compares_with_the_running_means_and_moves_them():
    module = adversarial(lecam_decay=0.5, lecam_weight=2.0, r1_weight=0.0)
    real, made = module.discriminator(pictures(2)).detach(), module.discriminator(pictures(1)).detach()
    losses = module(pictures(1), pictures(2))
    torch.testing.assert_close(module.real_mean, real.mean() / 2)
    torch.testing.assert_close(module.made_mean, made.mean() / 2)
    expected = (real - made.mean() / 2).relu().square().mean() + (real.mean() / 2 - made).relu().square().mean()
    torch.testing.assert_close(losses["lecam"].detach(), 2 * expected)
    module(pictures(1), pictures(2))
    torch.testing.assert_close(module.real_mean, real.mean() * 0.75)


def test_there_is_no_loss_before_the_start():
    module = adversarial(progress=0.24)
    assert module(pictures(1), pictures(2)) == {}
    module.progress = 0.25
    assert module(pictures(1), pictures(2))


def test_the_losses_are_finite_in_bfloat16():
    module, made = adversarial(), pictures(1).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = module(made, pictures(2))
        torch.stack(list(losses.values())).sum().backward()
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    assert made.grad.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients(module).values())


def test_bad_settings_are_named():
    for fields, message in (
        ({"start": 1.0}, "start"),
        ({"r1_weight": -1.0}, "r1_weight"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"lecam_decay": 1.0}, "lecam_decay"),
        ({"width": 0}, "width"),
    ):
        with pytest.raises(ConfigError, match=message):
            AdversarialConfig(**fields)
