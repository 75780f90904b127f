"""A timm classifier with DiffRate in all its blocks, as it was published: DeiT and MAE towers, and learning a schedule.

F images, N tokens with the class token first, P patches, C width, K classes
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmllm.encoders.timm_blocks import run_inside
from mmllm.encoders.tower import load_strictly
from mmllm.errors import ConfigError
from mmllm.pruning.diffrate import DiffRateConfig, DiffRateReducer
from mmllm.pruning.diffrate_learning import LearnedDiffRate, MaskedTokens
from mmllm.pruning.diffrate_schedule import CompressionSchedule, flops
from mmllm.runtime.progress import Progress


class DiffRateClassifier(nn.Module):
    """A vision transformer with its head. In training mode rates are learned, otherwise the schedule is followed.

    Args:
        vit: a timm `VisionTransformer` with one class token.
        granularity: steps between the numbers of tokens that are tried.
        fixed: blocks that keep everything: the first; for MAE's also the last.
        clamp_size: no size below 1 where tokens are removed, as while learning; published accuracies were measured
            without.

    Raises:
        ConfigError: for a transformer without a class token, or with further ones.
    """

    def __init__(
        self, vit: Any, *, granularity: int = 4, fixed: tuple[int, ...] = (0,), clamp_size: bool = False
    ) -> None:
        super().__init__()
        if vit.cls_token is None or vit.num_prefix_tokens != 1:
            raise ConfigError(f"DiffRate needs one class token, not {vit.num_prefix_tokens} tokens before the patches")
        self.vit = vit
        self.rates = LearnedDiffRate(
            patches=vit.patch_embed.num_patches, blocks=len(vit.blocks), granularity=granularity, fixed=fixed
        )
        self.fixed_schedule: CompressionSchedule | None = None
        """Followed in place of the learned one."""
        self.clamp_size = clamp_size

    @property
    def schedule(self) -> CompressionSchedule:
        """What is followed outside training."""
        return self.fixed_schedule or self.rates.schedule()

    def follow(self, schedule: CompressionSchedule | None) -> None:
        """Follows a schedule outside training; None follows what was learned.

        Raises:
            ConfigError: if it was made for another number of blocks, or cannot be followed.
        """
        if schedule is not None:
            self._reducer(schedule).schedule(self.rates.patches + 1, len(self.vit.blocks))
        self.fixed_schedule = schedule

    def _reducer(self, schedule: CompressionSchedule) -> DiffRateReducer:
        return DiffRateReducer(DiffRateConfig(prune=schedule.prune, merge=schedule.merge, clamp_size=self.clamp_size))

    def run(self, images: Tensor) -> tuple[Tensor, Any]:
        """Hidden states F N C behind the last block, and its state: `MaskedTokens`, or schedule and `LiveTokens`."""
        hidden = self.vit.norm_pre(self.vit._pos_embed(self.vit.patch_embed(images)))
        return run_inside(self.vit.blocks, hidden, self.rates if self.training else self._reducer(self.schedule))

    def forward(self, images: Tensor) -> Tensor:
        """Logits F K: of the class token, or, for MAE's, of the mean over patches that counts each by its size."""
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
        """Width, patch size and classes, by which cost is counted."""
        return {
            "width": self.vit.embed_dim,
            "patch": self.vit.patch_embed.patch_size[0],
            "classes": self.vit.num_classes,
        }

    def cost(self) -> Tensor:
        """Scalar: multiply-adds of the schedule that is learned, with gradients to the rates."""
        return self.rates.cost(**self.sizes)

    def flops(self) -> float:
        """Multiply-adds of the schedule that is followed outside training."""
        tokens = self.rates.patches + 1
        return flops(self.schedule.live(tokens), tokens=tokens, **self.sizes)

    def load_published(self, state: Mapping[str, Tensor]) -> None:
        """Loads a published checkpoint's `model`: timm's names, and rates if it has some.

        Raises:
            CheckpointError: if a tensor is missing, unknown or of another shape.
        """
        own = {name: value for name, value in state.items() if "_ddp." not in name}
        load_strictly(self.vit, own, what="the vision transformer")
        if len(own) < len(state):
            self.rates = LearnedDiffRate.from_published(state)

    def published(self) -> dict[str, Tensor]:
        """The tensors under the names of published checkpoints."""
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
    """Learns the rates of a classifier, whose own weights stay as they are (section 3 of the paper).

    Args:
        model: the classifier; left in evaluation mode.
        batches: images and their classes (int64 F) or targets (float F K); at least `steps` of them.
        target: what the schedule may cost, in 10^9 multiply-adds.
        steps: how many batches are learned from.
        learning_rate: of AdamW at the start; falls to a tenth by a cosine.
        weight: of the squared distance from the target.

    Returns:
        The schedule that was learned.

    Raises:
        InputError: if no schedule costs that little, or even the whole tower costs less.
    """
    trained = [rate for rate in model.rates.parameters() if rate.requires_grad]
    frozen = {name: one.requires_grad for name, one in model.vit.named_parameters()}
    model.vit.requires_grad_(False)
    optimiser = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, eta_min=learning_rate / 10)
    model.train()
    try:
        with Progress("learn a schedule", steps, "steps") as bar:
            for _, (images, classes) in zip(range(steps), batches, strict=False):
                cost = model.rates.cost_loss(target, **model.sizes, weight=weight)
                loss = nn.functional.cross_entropy(model(images), classes) + cost
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                falling.step()
                bar.advance(note=f"loss {loss.item():.3f}")
    finally:
        for name, one in model.vit.named_parameters():
            one.requires_grad_(frozen[name])
        model.eval()
    return model.schedule
