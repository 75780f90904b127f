"""Optimizers: AdamW for all weights, or Muon for weight matrices and AdamW for the rest.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) replaces a matrix's momentum by the nearest
matrix whose singular values are all about 1. Rare directions are then learned as fast as frequent ones. A step is
scaled to the size of an AdamW step (Liu et al. 2025, arXiv 2502.16982). Small models from scratch need fewer steps
with Muon.

R rows, C columns of a weight; kernels of convolutions are flattened to a matrix
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmllm.tokenizers.projectors import LinearProjector
from mmllm.train.image_losses.adversarial import Adversarial
from mmllm.train.schedule import TrainingSchedule

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""a, b, c of the polynomial x -> a x + b x^3 + c x^5, which moves singular values in (0, 1] close to 1."""
_ITERATIONS = 5
_ADAM_SIZE = 0.2
"""Typical root mean square of an AdamW step at learning rate 1; orthogonal steps are scaled to it."""


def nearly_orthogonal(matrix: Tensor) -> Tensor:
    """Returns the matrix (R C) with singular values moved to about 0.7 to 1.2, by Newton-Schulz iterations."""
    a, b, c = _COEFFICIENTS
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = x / (x.norm() + 1e-7)
    for _ in range(_ITERATIONS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x if wide else x.T


class Muon(torch.optim.Optimizer):
    """Applies Muon to parameter groups with `orthogonal` true, and AdamW to the others.

    Args:
        groups: parameter groups with `lr`, `weight_decay` and `orthogonal`.
        beta1: decay of AdamW's first moment.
        beta2: decay of AdamW's second moment.
        momentum: decay of Muon's momentum.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, beta1: float = 0.9, beta2: float = 0.98, momentum: float = 0.95
    ) -> None:
        super().__init__(groups, {"beta1": beta1, "beta2": beta2, "momentum": momentum, "epsilon": 1e-8})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates all weights that have a gradient; returns the loss of `closure`, if it is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            direction = self._orthogonal if group["orthogonal"] else self._adam
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.sub_(direction(weight, group), alpha=group["lr"])
        return loss

    def _orthogonal(self, weight: Tensor, group: dict[str, Any]) -> Tensor:
        """Returns Muon's step at learning rate 1, and updates the momentum."""
        state, gradient = self.state[weight], weight.grad
        assert gradient is not None
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        state["momentum"].lerp_(gradient, 1 - group["momentum"])
        nesterov = gradient.lerp(state["momentum"], group["momentum"]).flatten(1)  # R C
        return (nearly_orthogonal(nesterov) * (_ADAM_SIZE * max(nesterov.shape) ** 0.5)).view_as(weight)

    def _adam(self, weight: Tensor, group: dict[str, Any]) -> Tensor:
        """Returns Adam's step at learning rate 1, and updates both moments."""
        state, gradient = self.state[weight], weight.grad
        assert gradient is not None
        if not state:
            state |= {"step": 0, "first": torch.zeros_like(weight), "second": torch.zeros_like(weight)}
        state["step"] += 1
        state["first"].lerp_(gradient, 1 - group["beta1"])
        state["second"].lerp_(gradient.square(), 1 - group["beta2"])
        first = state["first"] / (1 - group["beta1"] ** state["step"])
        second = state["second"] / (1 - group["beta2"] ** state["step"])
        return first / (second.sqrt() + group["epsilon"])


def muon(model: nn.Module, training: TrainingSchedule, heads: Collection[str] = ()) -> Muon:
    """Returns an optimizer: Muon for weights of linear layers and convolutions, AdamW for all other trained weights.

    AdamW trains embeddings, weights tied to them, norms, biases and output heads: their rows should not have equal
    length.

    Args:
        model: its weights that require gradients are trained.
        training: learning rates, weight decay and decay of the second moment.
        heads: submodules, by the beginning of their names, that AdamW trains, too.
    """
    embedded = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    matrices = {
        id(module.weight)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d | LinearProjector) and not name.startswith(tuple(heads))
    } - embedded
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {
            "params": [weight for weight in trained if id(weight) in matrices],
            "lr": training.matrix_learning_rate,
            "weight_decay": training.weight_decay,
            "orthogonal": True,
        },
        {
            "params": [weight for weight in trained if id(weight) not in matrices and weight.ndim >= 2],
            "lr": training.learning_rate,
            "weight_decay": training.weight_decay,
            "orthogonal": False,
        },
        {
            "params": [weight for weight in trained if id(weight) not in matrices and weight.ndim < 2],
            "lr": training.learning_rate,
            "weight_decay": 0.0,
            "orthogonal": False,
        },
    ]
    return Muon([group for group in groups if group["params"]], beta2=training.adam_beta2)


def give_rates(optimizer: torch.optim.Optimizer, weights: Mapping[str, Tensor], training: TrainingSchedule) -> None:
    """Gives each part of `training.learning_rates` groups of its own, with its rate. A second call does nothing.

    Args:
        optimizer: with groups at the learning rates of `training`.
        weights: name of each weight in the model -> the weight.
        training: a part's rate is to `learning_rate` as the rates of its groups are to what they were.
    """
    for part, rate in training.learning_rates.items():
        own = {id(weight) for name, weight in weights.items() if part in _places(name)}
        for group in list(optimizer.param_groups):
            if group.get("part") is not None:
                continue
            chosen = [weight for weight in group["params"] if id(weight) in own]
            if not chosen:
                continue
            group["params"] = [weight for weight in group["params"] if id(weight) not in own]
            settings = {name: value for name, value in group.items() if name != "params"}
            settings |= {"lr": group["lr"] * rate / training.learning_rate, "part": part}
            optimizer.add_param_group({"params": chosen, **settings})
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]


def _places(name: str) -> list[str]:
    """The names of modules that a weight's name begins with, without those of wrappers: peft's, and those of FSDP."""
    below = name.removeprefix("base_model.model.").replace("_fsdp_wrapped_module.", "").removeprefix("module.")
    pieces = below.split(".")
    return [".".join(pieces[:count]) for count in range(1, len(pieces))]


def beside_discriminator(
    model: nn.Module, adversarial: Adversarial, training: TrainingSchedule
) -> torch.optim.Optimizer:
    """Returns one optimizer for a tokenizer and its discriminator, each with its own learning rate and decays.

    The gradient of the discriminator is clipped apart from the rest: its size says nothing about the tokenizer's.

    Args:
        model: has the tokenizer and the discriminator; its weights that require gradients are trained.
        adversarial: the submodule with the discriminator.
        training: learning rates, weight decay and decay of the second moment of the tokenizer.
    """
    judging = list(adversarial.parameters())
    own = {id(weight) for weight in judging}
    rest = [weight for weight in model.parameters() if weight.requires_grad and id(weight) not in own]
    config = adversarial.config
    apart = {"params": judging, "lr": config.learning_rate, "weight_decay": 0.0, "clipped_apart": True}
    if training.matrix_learning_rate:
        optimizer: torch.optim.Optimizer = muon(
            nn.ModuleList(child for child in model.children() if child is not adversarial), training
        )
        apart |= {"orthogonal": False, "beta1": config.adam_beta1, "beta2": config.adam_beta2}
    else:
        groups = [
            {"params": [weight for weight in rest if weight.ndim >= 2], "weight_decay": training.weight_decay},
            {"params": [weight for weight in rest if weight.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=training.learning_rate, betas=(0.9, training.adam_beta2))
        apart["betas"] = (config.adam_beta1, config.adam_beta2)
    optimizer.add_param_group(apart)
    return optimizer
