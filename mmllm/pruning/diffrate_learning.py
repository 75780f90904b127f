"""DiffRate's schedule, learned by gradient descent while the backbone stays frozen (arXiv 2305.17997, section 3).

    logits --softmax--> probability of each number of kept tokens --expectation, rounded up--> number of kept tokens
                                                                  --cumulated-->               a mask for each rank

The rounding and the masks pass gradients straight through. While a schedule is learned, no token is removed. Dropped
tokens are hidden from the attention instead, so that the mask has a gradient. `LearnedDiffRate.schedule` is the result.

F frames, P patches, N tokens (the patches and the class token), K candidate numbers, C width, H heads, L blocks
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from mmllm.errors import CheckpointError, InputError
from mmllm.pruning.diffrate_schedule import CompressionSchedule, flops
from mmllm.pruning.token_merging import (
    LiveTokens,
    in_raster_order,
    merge_targets,
    merged_mean,
    moved,
    order_by,
    sizes_as_bias,
)

_PUBLISHED = {"prune_ddp": "prune_rates", "merge_ddp": "merge_rates"}
"""Name of a block's rates in published checkpoints -> our list of the rates of all blocks."""
_FIELDS = ("kept_token_candidate", "selected_probability")
_EPSILON = 1e-6
_ROUNDING = 1e-4
"""Subtracted from an expectation before it is rounded up: float32 noise must not turn a whole number into the next."""


class LearnedRate(nn.Module):
    """The number of tokens that one step of one block keeps, as a differentiable choice among candidates."""

    def __init__(self, patches: int, *, granularity: int = 1) -> None:
        """Candidates are `patches`, `patches - granularity` and so on; only `patches` if the granularity is larger.

        Raises:
            InputError: if there are no patches, or the granularity is not positive.
        """
        super().__init__()
        if patches < 1 or granularity < 1:
            raise InputError(f"patches = {patches}, granularity = {granularity}: both must be at least 1")
        candidates = torch.arange(patches, 0, -granularity, dtype=torch.float32)
        self.patches = patches
        self.fewest = patches - granularity * ((patches - 1) // granularity)
        self.selected_probability = nn.Parameter(torch.zeros(len(candidates)))
        self.kept_token_candidate = nn.Parameter(candidates, requires_grad=False)

    @classmethod
    def of(cls, candidates: Tensor, logits: Tensor) -> LearnedRate:
        """A rate from its saved candidates and logits.

        Raises:
            CheckpointError: if the candidates do not fall from the number of patches in equal steps, or there is not
                one logit for each.
        """
        patches, step = int(candidates[0]), int(candidates[0] - candidates[1]) if len(candidates) > 1 else 0
        rate = cls(patches, granularity=max(step, 1) if len(candidates) > 1 else patches + 1)
        if not torch.equal(rate.kept_token_candidate.detach(), candidates.float()) or logits.shape != candidates.shape:
            raise CheckpointError(
                f"a rate's candidates must fall in equal steps and have a logit each, not "
                f"{candidates.int().tolist()[:9]} with {len(logits)} logits"
            )
        rate.selected_probability.data.copy_(logits)
        return rate

    def kept(self) -> Tensor:
        """Scalar: a whole number of tokens, the class token included, with the gradient of the expectation."""
        expected = torch.dot(self.kept_token_candidate, self.selected_probability.softmax(-1))
        return expected + ((expected - _ROUNDING).ceil() - expected).detach() + 1

    def count(self) -> int:
        """`kept` as a number."""
        return int(self.kept().item())

    def token_probability(self) -> Tensor:
        """N: probability that the token of each rank is kept; 1 for the class token, and never rising with the rank."""
        probability = self.selected_probability.softmax(-1)
        ranks = torch.arange(self.patches + 1, device=probability.device)
        return ((self.kept_token_candidate + 1 > ranks.unsqueeze(-1)) * probability).sum(-1)

    def mask(self, live: int) -> Tensor:
        """N: 0 for the ranks below `live` that are dropped now, 1 for all others, also for those dropped before."""
        probability = self.token_probability()
        ranks = torch.arange(len(probability), device=probability.device)
        dropped = (ranks >= self.count()) & (ranks < live)
        return (~dropped).float() - probability.detach() + probability


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskedTokens:
    """Tokens of a tower while its schedule is learned. None is removed; positions are the ranks of the last sort."""

    size: Tensor
    """float32, F N. Weight of each token in the attention."""
    mask: Tensor
    """float32, F N. 1 for live and 0 for dropped or merged tokens, with the gradient of their probability."""
    owner: Tensor
    """int64, F P. Which live token holds each original patch; -1 where it was dropped."""
    live: int
    """How many tokens are live."""


def attend_masked(queries: Tensor, keys: Tensor, values: Tensor, size: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Attention from which masked tokens are hidden. A masked token sees the live tokens and itself.

    Args:
        queries, keys, values: F H N D of a head.
        size, mask: F N.

    Returns:
        Mixed values F H N D, and the class token's attention, mean over heads, F N.
    """
    count = mask.shape[-1]
    logits = torch.einsum("fhqd,fhnd->fhqn", queries.float(), keys.float()) * queries.shape[-1] ** -0.5
    logits = logits + sizes_as_bias(size)
    own_token = torch.eye(count, device=mask.device)
    visible = rearrange(mask, "f n -> f 1 1 n") + rearrange(1 - mask, "f n -> f 1 1 n") * own_token
    weights = (logits - logits.amax(-1, keepdim=True).detach()).exp() * visible
    weights = (weights + _EPSILON / count) / (weights.sum(-1, keepdim=True) + _EPSILON)
    return (weights @ values.float()).to(values.dtype), weights[:, :, 0].mean(1)


def merge_in_place(hidden: Tensor, size: Tensor, *, live: int, kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """Merges tokens `kept` to `live` into the first `kept`; the merged ones stay in the tensor.

    Args:
        hidden: F N C.
        size: F N.
        live: number of live tokens.
        kept: number of them that take the others.

    Returns:
        Features F N C, sizes F N, no size below 1, and the targets (int64, F live-kept).
    """
    target, cosine = merge_targets(hidden[:, :live], kept)
    merged = merged_mean(hidden[:, :live], target)
    size = torch.cat([size[:, :kept], size[:, kept:live] * cosine, size[:, live:]], dim=-1).clamp(min=1.0)
    size = size.scatter_add(1, target, size[:, kept:live])
    return torch.cat([merged, hidden[:, kept:]], dim=1), size, target


class LearnedDiffRate(nn.Module):
    """A schedule while it is learned; an encoder takes it as `inside`.

    The training has to freeze the tower's own weights. Its loss is the loss of the task plus `cost_loss`.
    """

    def __init__(self, *, patches: int, blocks: int, granularity: int = 4, fixed: tuple[int, ...] = (0,)) -> None:
        """A rate for dropping and one for merging in each block.

        Args:
            patches: P.
            blocks: how many blocks the tower runs.
            granularity: distance between candidate numbers.
            fixed: blocks that keep all tokens. Published schedules fix the first, those for MAE also the last.
        """
        super().__init__()
        steps = [patches + 1 if block in fixed else granularity for block in range(blocks)]
        self.prune_rates = nn.ModuleList(LearnedRate(patches, granularity=step) for step in steps)
        self.merge_rates = nn.ModuleList(LearnedRate(patches, granularity=step) for step in steps)
        self.patches = patches

    @classmethod
    def from_published(cls, state: Mapping[str, Tensor]) -> LearnedDiffRate:
        """The rates in a published training checkpoint, `blocks.I.prune_ddp.*` and `blocks.I.merge_ddp.*`.

        Args:
            state: the checkpoint's `model`; the transformer's own tensors are ignored.

        Raises:
            CheckpointError: if there are no rates, a block lacks one, or they are for different numbers of patches.
        """
        tensors = {name: value for name, value in state.items() if "_ddp." in name}
        blocks = 1 + max((int(name.split(".")[1]) for name in tensors), default=-1)
        try:
            rates = {
                kind: [
                    LearnedRate.of(*(tensors.pop(f"blocks.{block}.{kind}.{field}") for field in _FIELDS))
                    for block in range(blocks)
                ]
                for kind in _PUBLISHED
            }
        except KeyError as missing:
            raise CheckpointError(f"the rates lack {missing}") from None
        sizes = {rate.patches for rates_of_kind in rates.values() for rate in rates_of_kind}
        if tensors:
            raise CheckpointError(f"the rates have unknown tensors: {sorted(tensors)[:3]}")
        if len(sizes) != 1:
            raise CheckpointError(f"the rates must be for one number of patches, not {sorted(sizes)}")
        learned = cls(patches=sizes.pop(), blocks=blocks)
        for kind, name in _PUBLISHED.items():
            setattr(learned, name, nn.ModuleList(rates[kind]))
        return learned

    def published(self) -> dict[str, Tensor]:
        """The rates under the names of published training checkpoints."""
        names = {name: kind for kind, name in _PUBLISHED.items()}
        parts = ((name.split("."), value) for name, value in self.state_dict().items())
        return {f"blocks.{block}.{names[rates]}.{field}": value for (rates, block, field), value in parts}

    def schedule(self) -> CompressionSchedule:
        """The schedule that is learned so far."""
        counts = [(prune.count(), merge.count()) for prune, merge in self._pairs()]
        return CompressionSchedule(prune=tuple(prune for prune, _ in counts), merge=tuple(merge for _, merge in counts))

    def cost(self, *, width: int, patch: int, classes: int = 0) -> Tensor:
        """Scalar, float32: multiply-adds of the tower with this schedule, as `flops`, with gradients to the rates.

        Args:
            width: C.
            patch: side of a patch in pixels.
            classes: outputs of a classification head.
        """
        tokens = self.patches + 1
        pairs = self._pairs()
        live = pairs[0][0].selected_probability.new_tensor(float(tokens))
        total = live * (width * 3 * patch**2) + width * classes
        for prune_rate, merge_rate in pairs:
            total = total + 4 * live * width**2 + 2 * live**2 * width
            prune, merge = prune_rate.kept(), merge_rate.kept()
            least = torch.stack([live, prune, merge]).min().detach()
            live = least + (prune - prune.detach()) + (merge - merge.detach())
            total = total + 8 * live * width**2
        return total

    def least_cost(self, *, width: int, patch: int, classes: int = 0) -> float:
        """Multiply-adds of the cheapest schedule that can be learned; arguments as in `cost`."""
        fewest = [min(rate.fewest + 1 for rate in pair) for pair in self._pairs()]
        return flops(fewest, tokens=self.patches + 1, width=width, patch=patch, classes=classes)

    def cost_loss(self, target: float, *, width: int, patch: int, classes: int = 0, weight: float = 5.0) -> Tensor:
        """weight * (cost - target)^2, both in units of 10^9 multiply-adds.

        Raises:
            InputError: if no schedule costs that little, or the tower with all its tokens costs less.
        """
        tokens, blocks = self.patches + 1, len(self.prune_rates)
        least = self.least_cost(width=width, patch=patch, classes=classes) / 1e9
        most = flops([tokens] * blocks, tokens=tokens, width=width, patch=patch, classes=classes) / 1e9
        if not least <= target <= most:
            raise InputError(f"target = {target}: this tower costs between {least:.4g} and {most:.4g} (10^9)")
        return weight * (self.cost(width=width, patch=patch, classes=classes) / 1e9 - target) ** 2

    def _pairs(self) -> list[tuple[LearnedRate, LearnedRate]]:
        return list(zip(self.prune_rates, self.merge_rates, strict=True))  # type: ignore[arg-type]

    def start(self, hidden: Tensor, blocks: int) -> MaskedTokens:
        """The state before the first block: all tokens of the hidden states F N C are live.

        Raises:
            InputError: if the rates are for another number of patches or blocks.
        """
        frames, count, _ = hidden.shape
        if (count, blocks) != (self.patches + 1, len(self.prune_rates)):
            raise InputError(
                f"the rates are for {self.patches} patches in {len(self.prune_rates)} blocks, "
                f"not {count - 1} in {blocks}"
            )
        ones, first = torch.ones(frames, count, device=hidden.device), LiveTokens.at_first(hidden)
        return MaskedTokens(size=first.size, mask=ones, owner=first.owner, live=count)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, state: MaskedTokens) -> tuple[Tensor, Tensor]:
        """See `attend_masked`."""
        return attend_masked(queries, keys, values, state.size, state.mask)

    def reduce(self, block: int, hidden: Tensor, row: Tensor, state: MaskedTokens) -> tuple[Tensor, MaskedTokens]:
        """Sorts the tokens by attention, then hides those that this block drops or merges."""
        prune, merge = self._pairs()[block]
        order = order_by(row.detach())
        hidden = hidden.gather(1, order.unsqueeze(-1).expand_as(hidden))
        size, owner, mask, live = state.size.gather(1, order), state.owner, state.mask, state.live
        owner = moved(owner, order.argsort(dim=-1))
        if (kept := prune.count()) < live:
            owner = owner.masked_fill(owner >= kept, -1)
            mask, live = mask * prune.mask(live), kept
        if (kept := merge.count()) < live:
            hidden, size, target = merge_in_place(hidden, size, live=live, kept=kept)
            stay = torch.arange(kept, device=target.device).expand(len(target), kept)
            owner = moved(owner, torch.cat([stay, target], dim=-1))
            mask, live = mask * merge.mask(live), kept
        return hidden, MaskedTokens(size=size, mask=mask, owner=owner, live=live)

    def finish(self, hidden: Tensor, state: MaskedTokens) -> tuple[Tensor, Tensor, Tensor]:
        """As `in_raster_order`; tokens that are dropped or merged come last, with size 0."""
        features, index, size = in_raster_order(hidden, LiveTokens(size=state.size, owner=state.owner))
        return features, index.clamp(max=self.patches - 1), size
