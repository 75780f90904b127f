"""The adversarial loss of reconstructions, and the losses of the discriminator that it needs.

One forward pass gives both, and one backward pass both gradients: the tokenizer's loss goes through a discriminator
whose weights are constants, and the discriminator's loss sees a reconstruction that is one. So a training step is like
any other, with one optimizer whose groups have different learning rates.

B images, S side in pixels
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, softplus

from mmllm.fields import require
from mmllm.train.image_losses.discriminator import Discriminator


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig:
    """A discriminator and its losses. TexTok gives none of these numbers; they are those of reimplementations."""

    weight: float = 0.1
    """Weight of the adversarial loss of the tokenizer."""
    start: float = 0.25
    """Fraction of the training before which there is no discriminator: first the reconstruction has to be near."""
    r1_weight: float = 10.0
    """Weight of half the squared gradient of the scores of real pictures (R1, arXiv 1801.04406)."""
    lecam_weight: float = 1e-4
    """Weight of the pull towards the running mean of the scores of the other kind of pictures (LeCAM, arXiv
    2104.03310)."""
    lecam_decay: float = 0.999
    """Decay of the running means."""
    learning_rate: float = 1e-4
    """Peak learning rate of the discriminator; it follows the schedule of the training."""
    adam_beta1: float = 0.0
    adam_beta2: float = 0.99
    width: int = 64
    """Channels of the discriminator at full size; they double with each halving."""
    most_width: int = 512
    """Most channels of the discriminator."""

    def __post_init__(self) -> None:
        for name in ("weight", "r1_weight", "lecam_weight"):
            require(getattr(self, name) >= 0, self, name, "zero or more")
        for name in ("start", "lecam_decay", "adam_beta1", "adam_beta2"):
            require(0 <= getattr(self, name) < 1, self, name, "from 0 to below 1")
        require(self.learning_rate > 0, self, "learning_rate", "above zero")
        for name in ("width", "most_width"):
            require(getattr(self, name) > 0, self, name, "positive")


class Adversarial(nn.Module):
    """A discriminator that is trained beside the tokenizer, with the losses of both."""

    real_mean: Tensor
    """Scalar: running mean of the scores of real pictures."""
    made_mean: Tensor
    """Scalar: running mean of the scores of reconstructions."""

    def __init__(self, config: AdversarialConfig, image_size: int) -> None:
        super().__init__()
        self.config = config
        self.progress = 0.0  # fraction of the training that is done; set by the training loop
        self.discriminator = Discriminator(image_size, width=config.width, most_width=config.most_width)
        self.register_buffer("real_mean", torch.zeros(()))
        self.register_buffer("made_mean", torch.zeros(()))

    def forward(self, made: Tensor, images: Tensor) -> dict[str, Tensor]:
        """Losses by name, scalars with their weights; none before the start.

        `adversarial` has a gradient for the tokenizer alone, the others for the discriminator alone.

        Args:
            made: float, B 3 S S: reconstructions, with their gradient.
            images: float, B 3 S S: the originals, from -1 to 1.
        """
        if self.progress < self.config.start:
            return {}
        constants = {name: weight.detach() for name, weight in self.discriminator.named_parameters()}
        judged = torch.func.functional_call(self.discriminator, constants, (made,))
        losses = {"adversarial": self.config.weight * softplus(-judged).mean()}
        images = images.detach().float().requires_grad_(self.config.r1_weight > 0)
        real_scores, made_scores = self.discriminator(images), self.discriminator(made.detach())
        losses["discriminator"] = softplus(-real_scores).mean() + softplus(made_scores).mean()
        if self.config.r1_weight:
            losses["r1"] = self.config.r1_weight / 2 * squared_gradient(real_scores, images)
        if self.config.lecam_weight:
            losses["lecam"] = self.config.lecam_weight * self._lecam(real_scores, made_scores)
        return losses

    def _lecam(self, real_scores: Tensor, made_scores: Tensor) -> Tensor:
        """How far scores are on the other side of the running means; the means then move towards the scores."""
        with torch.no_grad():
            share = 1 - self.config.lecam_decay
            self.real_mean.lerp_(real_scores.mean(), share)
            self.made_mean.lerp_(made_scores.mean(), share)
        real_mean, made_mean = self.real_mean.clone(), self.made_mean.clone()
        return relu(real_scores - made_mean).square().mean() + relu(real_mean - made_scores).square().mean()


def squared_gradient(scores: Tensor, images: Tensor) -> Tensor:
    """Mean over images of the squared gradient of their scores (B) by their pixels (B 3 S S)."""
    (gradient,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return gradient.square().flatten(1).sum(-1).mean()
