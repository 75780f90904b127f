"""DiffRate's step inside one block: sort tokens by class attention, drop the last ones, merge more of them.

    attention (merged tokens count by size) -> sort by class attention -> keep p -> merge down to m -> MLP

F frames, N tokens with the class token first, P patches, C width, H heads, D head width, M sources merged away
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from mmllm.errors import ConfigError, InputError

_TINY = 1e-6
"""Smallest size whose logarithm is taken. Sizes that are not clamped can fall to 0 or below, see `merged_size`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LiveTokens:
    """What is known of a tower's tokens besides their features."""

    size: Tensor
    """float32, F N. Weight of a token in attention: 1 for each patch that it holds, less for dissimilar patches."""
    owner: Tensor
    """int64, F P. Which live token holds each original patch; -1 where it was dropped."""

    @classmethod
    def at_first(cls, hidden: Tensor) -> LiveTokens:
        """The tokens of hidden states F N C before the first block: each patch is a token of its own."""
        frames, count, _ = hidden.shape
        patches = torch.arange(1, count, device=hidden.device).expand(frames, count - 1)
        return cls(size=torch.ones(frames, count, device=hidden.device), owner=patches)


def sizes_as_bias(size: Tensor) -> Tensor:
    """F 1 1 N: bias for the logits by which a merged token gets the attention of all patches that it holds."""
    return rearrange(size.clamp(min=_TINY).log(), "f n -> f 1 1 n")


def attend(queries: Tensor, keys: Tensor, values: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Attention in which tokens are weighted by size, and the class token's row of it.

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
    """For each token after the first `kept`: the most similar of these, by the cosine of their features.

    Args:
        hidden: F N C; the tokens to merge come last.
        kept: how many stay.
        first: the first token that may take others; 1 excludes the class token.

    Returns:
        Position of the target (int64, F M) and the cosine (F M), M = N - kept.
    """
    with torch.no_grad():
        unit = nn.functional.normalize(hidden.float(), dim=-1, eps=0.0)
        similarity = unit[:, kept:] @ unit[:, first:kept].mT  # F M kept-first
        cosine, target = similarity.max(dim=-1)
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
    """F kept: a source adds its size, times its cosine, to the size of its target.

    Args:
        size: F N.
        target, cosine: F M.
        clamp: raise sizes below 1 to 1 before they are added, as is done while a schedule is learned. Published
            accuracies were measured without it; then a source with a negative cosine makes its target smaller, even 0
            or negative.
    """
    kept = size.shape[1] - target.shape[1]
    weighted = torch.cat([size[:, :kept], size[:, kept:] * cosine], dim=-1)
    weighted = weighted.clamp(min=1.0) if clamp else weighted
    return merged_sum(weighted.unsqueeze(-1), target).squeeze(-1)


def compress(
    hidden: Tensor, live: LiveTokens, row: Tensor, *, prune: int, merge: int, clamp_size: bool = False
) -> tuple[Tensor, LiveTokens]:
    """One block's drop and merge, between attention and MLP.

    Args:
        hidden: F N C after the attention's residual, the class token first.
        live: sizes and owners of the N tokens.
        row: F N, the class token's attention.
        prune, merge: tokens that remain after each step; a number that is not below the present one changes nothing.
        clamp_size: see `merged_size`.

    Returns:
        F min(N, prune, merge) C, most attended first, and the live tokens.

    Raises:
        InputError: if the attention or a size is not finite.
        ConfigError: if a number is below 1, or all patch tokens would be merged: the class token takes none.
    """
    if not bool(row.isfinite().all()) or not bool(live.size.isfinite().all()):
        raise InputError("DiffRate got attention or sizes that are not finite")
    if prune < 1 or merge < 1 or (merge == 1 and min(prune, hidden.shape[1]) > 1):
        raise ConfigError(f"prune = {prune}, merge = {merge}: at least the class token stays, and takes no other token")
    # sort by attention, then drop the last ones
    order = order_by(row)
    hidden = hidden.gather(1, order.unsqueeze(-1).expand_as(hidden))[:, :prune]
    size, rank = live.size.gather(1, order)[:, :prune], order.argsort(dim=-1)
    owner = moved(live.owner, rank)
    owner = owner.masked_fill(owner >= prune, -1)
    # merge the last of the others into those before them
    if merge < hidden.shape[1]:
        target, cosine = merge_targets(hidden, merge)
        stay = torch.arange(merge, device=target.device).expand(len(target), merge)
        owner = moved(owner, torch.cat([stay, target], dim=-1))
        size = merged_size(size, target, cosine, clamp=clamp_size)
        hidden = merged_mean(hidden, target)
    return hidden, LiveTokens(size=size, owner=owner)


def moved(owner: Tensor, new: Tensor) -> Tensor:
    """Owners (F P) after token i became token new[i] (F N); dropped patches stay dropped."""
    return torch.where(owner < 0, owner, new.gather(1, owner.clamp(min=0)))


def in_raster_order(hidden: Tensor, live: LiveTokens) -> tuple[Tensor, Tensor, Tensor]:
    """Patch tokens, without the class token, sorted by the first patch that each one holds.

    Args:
        hidden: F N C.
        live: sizes and owners of the N tokens.

    Returns:
        Features F N-1 C; the raster position of each token's first patch (int64, F N-1); its number of patches (float,
        F N-1).
    """
    frames, count, _ = hidden.shape
    patches = live.owner.shape[1]
    slot = live.owner.where(live.owner >= 0, count)
    places = torch.arange(patches, device=hidden.device).expand(frames, patches)
    first = torch.full((frames, count + 1), patches, device=hidden.device)  # the last slot collects dropped patches
    first = first.scatter_reduce(1, slot, places, "amin")[:, 1:count]
    sizes = torch.zeros(frames, count + 1, device=hidden.device).scatter_add(1, slot, torch.ones_like(places).float())
    index, order = first.sort(dim=-1)
    features = hidden[:, 1:].gather(1, order.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
    return features, index, sizes[:, 1:count].gather(1, order)
