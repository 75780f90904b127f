"""A timm classifier with DiffRate in all its blocks, as published, for DeiT and MAE towers; learns its schedule.

F images, N tokens with the class token first, P patches, C width, K classes
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmllm.encoders.timm_blocks import run_inside
from mmllm.errors import ConfigError
from mmllm.modeling.tower import load_strictly
from mmllm.pruning.diffrate import DiffRateConfig, DiffRateReducer
from mmllm.pruning.diffrate_learning import LearnedDiffRate, MaskedTokens
from mmllm.pruning.diffrate_schedule import CompressionSchedule, flops
from mmllm.runtime.progress import Progress


class DiffRateClassifier(nn.Module):
    """A vision transformer with its head. It learns rates in training mode, and otherwise follows a schedule.

    Args:
        vit: a timm `VisionTransformer` with one class token.
        granularity: step between the numbers of tokens that are tried.
        fixed: blocks that keep all tokens: the first; for MAE also the last.
        clamp_size: when tokens are removed, sizes below 1 become 1, as during learning. Published accuracies were
            measured with False.

    Raises:
        ConfigError: if the transformer has no class token, or other prefix tokens.
    """

    def __init__(
        self, vit: Any, *, granularity: int = 4, fixed: tuple[int, ...] = (0,), clamp_size: bool = False
    ) -> None:
        super().__init__()
        if vit.cls_token is None or vit.num_prefix_tokens != 1:
            raise ConfigError(f"DiffRate needs exactly one class token, not {vit.num_prefix_tokens} prefix tokens")
        self.vit = vit
        self.rates = LearnedDiffRate(
            patches=vit.patch_embed.num_patches, blocks=len(vit.blocks), granularity=granularity, fixed=fixed
        )
        self.fixed_schedule: CompressionSchedule | None = None
        """A schedule to follow instead of the learned one."""
        self.clamp_size = clamp_size

    @property
    def schedule(self) -> CompressionSchedule:
        """The schedule that is followed outside training."""
        return self.fixed_schedule or self.rates.schedule()

    def follow(self, schedule: CompressionSchedule | None) -> None:
        """Sets the schedule to follow outside training; None selects the learned schedule.

        Raises:
            ConfigError: if the schedule has another number of blocks than the model, or cannot be followed.
        """
        if schedule is not None:
            self._reducer(schedule).schedule(self.rates.patches + 1, len(self.vit.blocks))
        self.fixed_schedule = schedule

    def _reducer(self, schedule: CompressionSchedule) -> DiffRateReducer:
        return DiffRateReducer(DiffRateConfig(prune=schedule.prune, merge=schedule.merge, clamp_size=self.clamp_size))

    def run(self, images: Tensor) -> tuple[Tensor, Any]:
        """Returns hidden states F N C after the last block and a state.

        The state is `MaskedTokens` in training mode, otherwise a pair of schedule and `LiveTokens`.
        """
        hidden = self.vit.norm_pre(self.vit._pos_embed(self.vit.patch_embed(images)))
        return run_inside(self.vit.blocks, hidden, self.rates if self.training else self._reducer(self.schedule))

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits F K from the class token or, for MAE, from the mean over patches weighted by their sizes."""
        hidden, state = self.run(images)
        if self.vit.global_pool == "token":
            pooled = self.vit.norm(hidden)[:, 0]
        else:
            live = state if isinstance(state, MaskedTokens) else state[1]
            weight = live.size * live.mask if isinstance(live, MaskedTokens) else live.size
            weight = weight[:, 1:, None]
            pooled = (hidden[:, 1:] * weight).sum(1) / weight.sum(1)
        return self.vit.head(self.vit.head_drop(self.vit.fc_norm(pooled)))

    @property
    def sizes(self) -> dict[str, int]:
        """Width, patch size and number of classes, as arguments of the cost functions."""
        return {
            "width": self.vit.embed_dim,
            "patch": self.vit.patch_embed.patch_size[0],
            "classes": self.vit.num_classes,
        }

    def cost(self) -> Tensor:
        """Returns a scalar: multiply-adds of the learned schedule, with gradients to the rates."""
        return self.rates.cost(**self.sizes)

    def flops(self) -> float:
        """Returns the multiply-adds of the schedule that is followed outside training."""
        tokens = self.rates.patches + 1
        return flops(self.schedule.live(tokens), tokens=tokens, **self.sizes)

    def load_published(self, state: Mapping[str, Tensor]) -> None:
        """Loads the `model` of a published checkpoint: weights with timm's names and, if present, rates.

        Raises:
            CheckpointError: if a tensor is missing, is unknown or has another shape.
        """
        # published rates have "_ddp." in their names
        weights = {name: value for name, value in state.items() if "_ddp." not in name}
        load_strictly(self.vit, weights, what="the vision transformer")
        if len(weights) < len(state):
            self.rates = LearnedDiffRate.from_published(state)

    def published(self) -> dict[str, Tensor]:
        """Returns all tensors with the names of published checkpoints."""
        return {**self.vit.state_dict(), **self.rates.published()}


def learn_schedule(
    model: DiffRateClassifier,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    target: float,
    steps: int,
    learning_rate: float = 0.01,
    weight: float = 5.0,
) -> CompressionSchedule:
    """Learns the rates of a classifier; its other weights are frozen (section 3 of the paper).

    Args:
        model: the classifier; it is in evaluation mode afterwards.
        batches: images and their classes (int64 F) or targets (float F K); at least `steps` of them.
        target: intended cost of the schedule, in 10^9 multiply-adds.
        steps: number of batches to learn from.
        learning_rate: initial learning rate of AdamW; it falls to a tenth on a cosine.
        weight: loss weight of the squared distance from the target.

    Returns:
        The learned schedule.

    Raises:
        InputError: if every schedule costs more than the target, or the tower without DiffRate costs less.
    """
    rates = [rate for rate in model.rates.parameters() if rate.requires_grad]
    trainable = {name: parameter.requires_grad for name, parameter in model.vit.named_parameters()}
    model.vit.requires_grad_(False)
    optimiser = torch.optim.AdamW(rates, lr=learning_rate, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, eta_min=learning_rate / 10)
    model.train()
    try:
        with Progress("learn a schedule", steps, "steps") as bar:
            for _, (images, classes) in zip(range(steps), batches, strict=False):
                cost = model.rates.cost_loss(target, **model.sizes, weight=weight)
                loss = nn.functional.cross_entropy(model(images), classes) + cost
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                scheduler.step()
                bar.advance(note=f"loss {loss.item():.3f}")
    finally:
        for name, parameter in model.vit.named_parameters():
            parameter.requires_grad_(trainable[name])
        model.eval()
    return model.schedule
