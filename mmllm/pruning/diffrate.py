"""DiffRate: inside every block of a vision transformer, drop the least attended tokens, then merge some more.

    block:  attention (merged tokens count by size) -> sort by class attention -> keep p -> merge down to m -> MLP

The numbers p and m of each block are a schedule, the same for every image; it is learned once (see
`diffrate_learning`) and then costs nothing (ICCV 2023, arXiv 2305.17997). Both count the class token.

F frames, N tokens with the class token first, P patches, C width, H heads, L blocks, M sources merged away
"""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn

from mmllm.errors import ConfigError, InputError
from mmllm.fields import require
from mmllm.registry import register
from mmllm.tokens import VisualTokens

_TINY = 1e-6
"""Least size whose logarithm is taken. Sizes that are not clamped can fall to zero or below, see `merged_size`."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How many tokens each block keeps. A number above what is there changes nothing."""

    prune: tuple[int, ...]
    """Tokens left after dropping, one number a block, the class token counted."""
    merge: tuple[int, ...]
    """Tokens left after merging."""

    def __post_init__(self) -> None:
        if len(self.prune) != len(self.merge):
            raise ConfigError(
                f"a schedule has as many prune as merge numbers, not {len(self.prune)}, {len(self.merge)}"
            )
        if any(kept < 1 for kept in self.prune + self.merge):
            raise ConfigError(f"a schedule keeps at least the class token: {self.prune}, {self.merge}")

    def __len__(self) -> int:
        return len(self.prune)

    def live(self, tokens: int) -> list[int]:
        """How many of `tokens` are left after each block.

        Raises:
            ConfigError: if tokens would have to be merged with nothing but the class token to take them.
        """
        counts = []
        for prune, merge in zip(self.prune, self.merge, strict=True):
            tokens = min(tokens, prune)
            if merge == 1 and tokens > 1:
                raise ConfigError(f"{tokens - 1} tokens cannot be merged: only the class token is left to take them")
            tokens = min(tokens, merge)
            counts.append(tokens)
        return counts


def published(prune: str, merge: str) -> Schedule:
    """A schedule written as the published file writes its lists, as text; "None" means that nothing is done.

    Raises:
        ConfigError: if the text is not a list of whole numbers.
    """
    lists = []
    for text in (prune, merge):
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        if value is not None and not (isinstance(value, list) and all(type(kept) is int for kept in value)):
            raise ConfigError(f"a schedule is a list of whole numbers, not {text!r}")
        lists.append(value)
    length = len(next((value for value in lists if value is not None), ()))
    never = (2**31,) * length
    return Schedule(prune=tuple(lists[0] or never), merge=tuple(lists[1] or never))


def read_schedules(path: str | Path) -> dict[str, dict[str, Schedule]]:
    """The schedules of a published `compression_rate.json`: model -> GFLOPs -> schedule."""
    found: Mapping[str, Mapping[str, Mapping[str, str]]] = json.loads(Path(path).read_text(encoding="utf-8"))
    return {
        model: {key: published(one["prune_kept_num"], one["merge_kept_num"]) for key, one in entries.items()}
        for model, entries in found.items()
    }


def even_schedule(tokens: int, blocks: int, keep: int) -> Schedule:
    """The same share of tokens merged away in every block but the first, `keep` tokens left at the end."""
    if not 2 <= keep <= tokens:
        raise ConfigError(f"keep = {keep}: must be between 2 and {tokens} tokens, the class token counted")
    shares = [block / (blocks - 1) for block in range(blocks)] if blocks > 1 else [1.0]
    merge = tuple(max(keep, math.ceil(tokens * (keep / tokens) ** share - 1e-9)) for share in shares)
    return Schedule(prune=(tokens,) * blocks, merge=merge)


def flops(counts: Sequence[int], *, tokens: int, width: int, patch: int, classes: int = 0) -> float:
    """Multiply-adds of a vision transformer whose blocks leave `counts` tokens, as the paper counts them.

    Attention is paid for with the tokens that enter a block, the MLP with those that leave it; its ratio is taken as
    4. Norms, softmax and biases are not counted.
    """
    total, live = float(tokens * width * 3 * patch**2 + width * classes), tokens
    for left in counts:
        total += 4 * live * width**2 + 2 * live**2 * width
        live = min(live, left)
        total += 8 * live * width**2
    return total


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
        InputError: if the attention is not finite.
    """
    if not bool(row.isfinite().all()):
        raise InputError("DiffRate was given attention that is not finite")
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
    """A schedule, or the number of tokens that an even schedule leaves."""

    prune: tuple[int, ...] = ()
    """Tokens that each block of the tower keeps, class token counted; one number for each block that is run."""
    merge: tuple[int, ...] = ()
    """Tokens that each block has after merging."""
    keep: int | None = None
    """Patch tokens left of each frame by an even schedule of merges, in place of the two lists."""
    clamp_size: bool = False
    """See `merged_size`."""

    def __post_init__(self) -> None:
        if (self.keep is None) == (not self.prune and not self.merge):
            raise ConfigError("DiffRateConfig needs either a schedule (prune and merge) or keep")
        require(self.keep is None or self.keep >= 1, self, "keep", "at least 1 token")
        Schedule(prune=self.prune, merge=self.merge)


@register("reducer", "diffrate", config=DiffRateConfig)
class DiffRateReducer(nn.Module):
    """DiffRate: drops and merges tokens inside the encoder's blocks, on a schedule."""

    runs_inside_encoder: ClassVar[bool] = True
    """The encoder takes this reducer as `inside` and calls `start`, `attend`, `reduce` and `finish`."""
    scores_needed: tuple[str, ...] = ()

    def __init__(self, config: DiffRateConfig) -> None:
        super().__init__()
        self.config = config

    def schedule(self, tokens: int, blocks: int) -> Schedule:
        """The schedule for a tower of that many blocks and tokens, class token counted.

        Raises:
            ConfigError: if it was made for another number of blocks, or cannot be followed.
        """
        if self.config.keep is not None:
            return even_schedule(tokens, blocks, self.config.keep + 1)
        schedule = Schedule(prune=self.config.prune, merge=self.config.merge)
        if len(schedule) != blocks:
            raise ConfigError(f"the schedule is for {len(schedule)} blocks, the encoder runs {blocks}")
        schedule.live(tokens)
        return schedule

    def start(self, hidden: Tensor, blocks: int) -> tuple[Schedule, Live]:
        """What is live before the first of `blocks` blocks; of hidden states F N C."""
        return self.schedule(hidden.shape[1], blocks), Live.at_first(hidden)

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, state: tuple[Schedule, Live]
    ) -> tuple[Tensor, Tensor]:
        """See `attend`."""
        return attend(queries, keys, values, state[1].size)

    def reduce(
        self, block: int, hidden: Tensor, row: Tensor, state: tuple[Schedule, Live]
    ) -> tuple[Tensor, tuple[Schedule, Live]]:
        """Block number `block`'s drop and merge; see `compress`."""
        schedule, live = state
        prune, merge = schedule.prune[block], schedule.merge[block]
        hidden, live = compress(hidden, live, row, prune=prune, merge=merge, clamp_size=self.config.clamp_size)
        return hidden, (schedule, live)

    def finish(self, hidden: Tensor, state: tuple[Schedule, Live]) -> tuple[Tensor, Tensor, Tensor]:
        """Features, index and size of the patch tokens; see `in_raster_order`."""
        return in_raster_order(hidden, state[1])

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """The tokens as they are: they were reduced on their way through the encoder.

        Raises:
            InputError: if they were not.
        """
        if tokens.size is None:
            raise InputError("diffrate works inside the encoder; these tokens come from one that ran without it")
        return tokens

    def kept_tokens(self, tokens_per_frame: int, frames: int) -> int:
        """The most tokens that remain of a whole video, if every block of the schedule is run."""
        blocks = len(self.config.prune) or 2
        return (self.schedule(tokens_per_frame + 1, blocks).live(tokens_per_frame + 1)[-1] - 1) * frames
