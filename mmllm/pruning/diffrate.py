"""DiffRate: inside every block of a vision transformer, drop the least attended tokens, then merge some more.

    block:  attention (merged tokens count by size) -> sort by class attention -> keep p -> merge down to m -> MLP

The numbers p and m of each block are a schedule, the same for every image; it is learned once (see
`diffrate_learning`) and then costs nothing (ICCV 2023, arXiv 2305.17997). Both count the class token.

F frames, N tokens with the class token first, P patches, C width, H heads, L blocks, M sources merged away
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn

from mmllm.errors import ConfigError, InputError
from mmllm.fields import require
from mmllm.pruning.diffrate_schedule import Schedule, even_schedule, flops
from mmllm.registry import register
from mmllm.tokens import VisualTokens

if TYPE_CHECKING:
    from mmllm.pruning.diffrate_learning import LearnedDiffRate

_TINY = 1e-6
"""Least size whose logarithm is taken. Sizes that are not clamped can fall to zero or below, see `merged_size`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Live:
    """The tokens that go through a tower, beside their features."""

    size: Tensor
    """float32, F N. What a token weighs in attention: how many patches it stands for, less what was unlike."""
    owner: Tensor
    """int64, F P. Which live token holds each original patch; -1 where it was dropped."""

    @classmethod
    def at_first(cls, hidden: Tensor) -> Live:
        """Every patch stands for itself; of hidden states F N C."""
        frames, count, _ = hidden.shape
        patches = torch.arange(1, count, device=hidden.device).expand(frames, count - 1)
        return cls(size=torch.ones(frames, count, device=hidden.device), owner=patches)


def sizes_as_bias(size: Tensor) -> Tensor:
    """F 1 1 N: added to the logits, it lets a merged token be attended to like the patches it stands for."""
    return rearrange(size.clamp(min=_TINY).log(), "f n -> f 1 1 n")


def attend(queries: Tensor, keys: Tensor, values: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Attention in which merged tokens count by size, and the class token's row of it.

    Args:
        queries, keys, values: F H N D of a head, unscaled.
        size: F N.

    Returns:
        The mixed values F H N D, and the class token's attention over the N tokens, mean over heads, F N.
    """
    bias = sizes_as_bias(size)
    mixed = nn.functional.scaled_dot_product_attention(queries, keys, values, attn_mask=bias.to(queries.dtype))
    with torch.no_grad():
        logits = torch.einsum("fhd,fhnd->fhn", queries[:, :, 0].float(), keys.float()) * queries.shape[-1] ** -0.5
        row = (logits + bias[:, :, 0]).softmax(-1).mean(1)
    return mixed, row


def order_by(row: Tensor) -> Tensor:
    """int64, F N: the class token, then the others from the most to the least attended (F N), ties by position."""
    ranked = row[:, 1:].argsort(dim=-1, descending=True, stable=True) + 1
    return torch.cat([torch.zeros_like(ranked[:, :1]), ranked], dim=-1)


def merge_targets(hidden: Tensor, kept: int, *, first: int = 1) -> tuple[Tensor, Tensor]:
    """Which of the first `kept` tokens each other token is most like, by the cosine of their features.

    Args:
        hidden: F N C, the tokens to merge behind the others.
        kept: how many stay.
        first: the first token that may take others; 1 spares the class token.

    Returns:
        Position of the target (int64, F M) and the cosine (F M), M = N - kept.
    """
    with torch.no_grad():
        unit = nn.functional.normalize(hidden.float(), dim=-1, eps=0.0)
        likeness = unit[:, kept:] @ unit[:, first:kept].mT  # F M kept-first
        cosine, target = likeness.max(dim=-1)
    return target + first, cosine


def merged_mean(hidden: Tensor, target: Tensor) -> Tensor:
    """F kept C: every target becomes the plain mean of itself and its sources, whatever their sizes."""
    kept = hidden.shape[1] - target.shape[1]
    count = torch.ones_like(hidden[:, :kept, :1]).scatter_add(
        1, target.unsqueeze(-1), torch.ones_like(hidden[:, kept:, :1])
    )
    return merged_sum(hidden, target) / count


def merged_sum(values: Tensor, target: Tensor) -> Tensor:
    """F kept C: every target plus its sources."""
    kept = values.shape[1] - target.shape[1]
    return values[:, :kept].scatter_add(1, target.unsqueeze(-1).expand_as(values[:, kept:]), values[:, kept:])


def merged_size(size: Tensor, target: Tensor, cosine: Tensor, *, clamp: bool) -> Tensor:
    """F kept: a source adds its size times its likeness to its target.

    Args:
        size: F N.
        target, cosine: F M.
        clamp: no size below 1 before they are added, as while a schedule is learned. Without it, as published
            accuracies were measured, an unlike source makes its target smaller, even zero or negative.
    """
    kept = size.shape[1] - target.shape[1]
    weighed = torch.cat([size[:, :kept], size[:, kept:] * cosine], dim=-1)
    weighed = weighed.clamp(min=1.0) if clamp else weighed
    return merged_sum(weighed.unsqueeze(-1), target).squeeze(-1)


def compress(
    hidden: Tensor, live: Live, row: Tensor, *, prune: int, merge: int, clamp_size: bool = False
) -> tuple[Tensor, Live]:
    """One block's drop and merge, between attention and MLP.

    Args:
        hidden: F N C after the attention's residual, the class token first.
        live: sizes and owners of the N tokens.
        row: F N, the class token's attention.
        prune, merge: tokens left after each step; a number that is not below what is there changes nothing.
        clamp_size: see `merged_size`.

    Returns:
        F min(N, prune, merge) C, most attended first, and what is live.

    Raises:
        InputError: if the attention or a size is not finite.
        ConfigError: if not even the class token would be left, or nothing but it to take the others.
    """
    if not bool(row.isfinite().all()) or not bool(live.size.isfinite().all()):
        raise InputError("DiffRate was given attention or sizes that are not finite")
    if prune < 1 or merge < 1 or (merge == 1 and min(prune, hidden.shape[1]) > 1):
        raise ConfigError(f"prune = {prune}, merge = {merge}: at least the class token stays, and takes no other token")
    order = order_by(row)
    hidden = hidden.gather(1, order.unsqueeze(-1).expand_as(hidden))[:, :prune]
    size, rank = live.size.gather(1, order)[:, :prune], order.argsort(dim=-1)
    owner = moved(live.owner, rank)
    owner = owner.masked_fill(owner >= prune, -1)
    if merge < hidden.shape[1]:
        target, cosine = merge_targets(hidden, merge)
        stay = torch.arange(merge, device=target.device).expand(len(target), merge)
        owner = moved(owner, torch.cat([stay, target], dim=-1))
        size = merged_size(size, target, cosine, clamp=clamp_size)
        hidden = merged_mean(hidden, target)
    return hidden, Live(size=size, owner=owner)


def moved(owner: Tensor, new: Tensor) -> Tensor:
    """Owners (F P) after token i became token new[i] (F N); dropped patches stay dropped."""
    return torch.where(owner < 0, owner, new.gather(1, owner.clamp(min=0)))


def in_raster_order(hidden: Tensor, live: Live) -> tuple[Tensor, Tensor, Tensor]:
    """Patch tokens sorted by the first patch each holds, without the class token.

    Args:
        hidden: F N C.
        live: of the N tokens.

    Returns:
        Features F N-1 C; int64 F N-1, the raster position of the first patch; float F N-1, how many patches.
    """
    frames, count, _ = hidden.shape
    patches = live.owner.shape[1]
    slot = live.owner.where(live.owner >= 0, count)
    places = torch.arange(patches, device=hidden.device).expand(frames, patches)
    first = torch.full((frames, count + 1), patches, device=hidden.device)
    first = first.scatter_reduce(1, slot, places, "amin")[:, 1:count]
    held = torch.zeros(frames, count + 1, device=hidden.device).scatter_add(1, slot, torch.ones_like(places).float())
    index, order = first.sort(dim=-1)
    features = hidden[:, 1:].gather(1, order.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
    return features, index, held[:, 1:count].gather(1, order)


@dataclass(frozen=True, kw_only=True)
class DiffRateConfig:
    """A schedule, the number of tokens that an even schedule leaves, or the cost that training is to reach."""

    prune: tuple[int, ...] = ()
    """Tokens that each block of the tower keeps, class token counted; one number for each block that is run."""
    merge: tuple[int, ...] = ()
    """Tokens that each block has after merging."""
    keep: int | None = None
    """Patch tokens left of each frame by an even schedule of merges, in place of the two lists."""
    target: float | None = None
    """Share of the tower's multiply-adds that a schedule learned in training is to cost, in place of the lists."""
    granularity: int = 4
    """Steps between the numbers of tokens that are tried while a schedule is learned."""
    cost_weight: float = 100.0
    """Weight of the squared distance from `target`; the paper's 5, counted in 10^9, for a tower of 4.5 * 10^9."""
    clamp_size: bool = False
    """See `merged_size`."""

    def __post_init__(self) -> None:
        given = [bool(self.prune or self.merge), self.keep is not None, self.target is not None]
        if sum(given) != 1:
            raise ConfigError("DiffRateConfig needs one of: a schedule (prune and merge), keep, target")
        require(self.keep is None or self.keep >= 1, self, "keep", "at least 1 token")
        require(self.target is None or 0 < self.target <= 1, self, "target", "above 0 and at most 1")
        require(self.granularity >= 1, self, "granularity", "at least 1")
        require(self.cost_weight >= 0, self, "cost_weight", "zero or more")
        Schedule(prune=self.prune, merge=self.merge)


@register("reducer", "diffrate", config=DiffRateConfig)
class DiffRateReducer(nn.Module):
    """DiffRate: drops and merges tokens inside the encoder's blocks, on a schedule that is given or learned."""

    runs_inside_encoder: ClassVar[bool] = True
    """The encoder takes this reducer as `inside` and calls `start`, `attend`, `reduce` and `finish`."""
    scores_needed: tuple[str, ...] = ()

    def __init__(self, config: DiffRateConfig) -> None:
        super().__init__()
        self.config = config
        self.rates: LearnedDiffRate | None = None
        """What a schedule is learned with, where the configuration has a `target`."""
        self.tower: dict[str, int] = {}
        """Width and patch size of the tower, by which cost is counted."""

    def prepare(self, encoder: Any) -> None:
        """Gets ready to learn a schedule for a tower, if one is to be learned; when a model is put together.

        Raises:
            ConfigError: if no schedule costs as little as the target.
        """
        if self.config.target is None or self.rates is not None:
            return
        from mmllm.pruning.diffrate_learning import LearnedDiffRate

        patches, blocks = encoder.grid[0] * encoder.grid[1], encoder.config.blocks_run
        self.rates = LearnedDiffRate(patches=patches, blocks=blocks, granularity=self.config.granularity)
        self.tower = {"width": encoder.width, "patch": encoder.config.patch_size}
        least = self.rates.least_cost(**self.tower) / self._whole(patches + 1, blocks)
        if self.config.target < least:
            raise ConfigError(
                f"DiffRateConfig.target = {self.config.target}: with this tower and granularity, must be from "
                f"{least:.3g} to 1"
            )

    def _whole(self, tokens: int, blocks: int) -> float:
        return flops([tokens] * blocks, tokens=tokens, **self.tower)

    def schedule(self, tokens: int, blocks: int) -> Schedule:
        """The schedule for a tower of that many blocks and tokens, class token counted.

        Raises:
            ConfigError: if it was made for another number of blocks, cannot be followed, or was never learned.
        """
        if self.config.keep is not None:
            return even_schedule(tokens, blocks, self.config.keep + 1)
        if self.config.target is not None and self.rates is None:
            raise ConfigError("diffrate:target=... learns its schedule in training; here there is none yet")
        schedule = self.rates.schedule() if self.rates else Schedule(prune=self.config.prune, merge=self.config.merge)
        if len(schedule) != blocks:
            raise ConfigError(f"the schedule is for {len(schedule)} blocks, the encoder runs {blocks}")
        schedule.live(tokens)
        return schedule

    def start(self, hidden: Tensor, blocks: int) -> Any:
        """What is live before the first of `blocks` blocks; of hidden states F N C."""
        if self.rates is not None and self.training:
            return self.rates.start(hidden, blocks)
        return self.schedule(hidden.shape[1], blocks), Live.at_first(hidden)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, state: Any) -> tuple[Tensor, Tensor]:
        """See `attend`."""
        if self.rates is not None and self.training:
            return self.rates.attend(queries, keys, values, state)
        return attend(queries, keys, values, state[1].size)

    def reduce(self, block: int, hidden: Tensor, row: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Block number `block`'s drop and merge; see `compress`."""
        if self.rates is not None and self.training:
            return self.rates.reduce(block, hidden, row, state)
        schedule, live = state
        prune, merge = schedule.prune[block], schedule.merge[block]
        hidden, live = compress(hidden, live, row, prune=prune, merge=merge, clamp_size=self.config.clamp_size)
        return hidden, (schedule, live)

    def finish(self, hidden: Tensor, state: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Features, index and size of the patch tokens; see `in_raster_order`."""
        if self.rates is not None and self.training:
            return self.rates.finish(hidden, state)
        return in_raster_order(hidden, state[1])

    def losses(self) -> dict[str, Tensor]:
        """`diffrate_cost`: how far the schedule is from its target, weighted; empty where none is learned."""
        if self.rates is None or self.config.target is None:
            return {}
        whole = self._whole(self.rates.patches + 1, len(self.rates.prune_rates))
        share = self.rates.cost(**self.tower) / whole
        return {"diffrate_cost": self.config.cost_weight * (share - self.config.target) ** 2}

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """The tokens as they are: they were reduced on their way through the encoder.

        Raises:
            InputError: if they were not.
        """
        if tokens.size is None:
            raise InputError("diffrate works inside the encoder; these tokens come from one that ran without it")
        return tokens

    def kept_tokens(self, tokens_per_frame: int, frames: int) -> int:
        """The most tokens that remain of a whole video if every block is run; all of them if that is to be learned."""
        if self.config.target is not None and self.rates is None:
            return tokens_per_frame * frames
        blocks = len(self.rates.prune_rates) if self.rates else len(self.config.prune) or 2
        return (self.schedule(tokens_per_frame + 1, blocks).live(tokens_per_frame + 1)[-1] - 1) * frames
