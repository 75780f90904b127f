"""Which tokens of a medium a merged token is made of, followed through several reducers.

T frames, n tokens of a frame, M tokens of a medium, C width
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from mmllm.hosting.media import Medium
from mmllm.interfaces import Groups
from mmllm.tokens import VisualTokens


@dataclass(frozen=True, kw_only=True, eq=False)
class Members:
    """For each of the M tokens: the token of the reducers that it is in now, and with which weight."""

    frame: Tensor
    """int64, M. The frame of that token; -1 for one that is in none."""
    place: Tensor
    """int64, M. Its `VisualTokens.index`."""
    weight: Tensor
    """float32, M."""
    where: Tensor
    """float64, M 2. Row and column of each of the M tokens, to find the middle of a group."""
    is_merged: bool = False

    @classmethod
    def of(cls, medium: Medium, slots: Tensor) -> Members:
        """Each token by itself.

        Args:
            medium: the medium.
            slots: int64, T n. The place of each token among the M; -1 at padding.
        """
        frame, place = torch.full((medium.count,), -1), torch.zeros(medium.count, dtype=torch.long)
        t, _ = (slots >= 0).nonzero(as_tuple=True)
        frame[slots[slots >= 0]] = t
        place[slots[slots >= 0]] = cast(Tensor, medium.place_of)[slots[slots >= 0]]
        columns = medium.grid[1] if medium.grid else medium.count
        where = torch.stack([place.div(columns, rounding_mode="floor"), place % columns], -1).double()
        return cls(frame=frame, place=place, weight=torch.ones(medium.count), where=where)

    def merged(self, before: VisualTokens, after: VisualTokens, groups: Groups) -> Members:
        """Members after a reducer that merges.

        Args:
            before, after: the reducer's input and output, 1 T n C.
            groups: what it says of them.
        """
        slot = _slots(before, self.frame, self.place)
        found = slot >= 0
        own = self.frame.clamp(min=0), slot.clamp(min=0)
        owner = groups.owner[0].cpu()[own]
        found &= owner >= 0
        weight = groups.weight[0].cpu()[own].float()
        frame = self.frame if groups.frame is None else groups.frame[0].cpu()[own]
        place = after.index[0].cpu()[frame.clamp(min=0), owner.clamp(min=0)]
        return Members(
            frame=frame.masked_fill(~found, -1),
            place=place.masked_fill(~found, 0),
            weight=(self.weight * weight).masked_fill(~found, 0.0),
            where=self.where,
            is_merged=True,
        )

    def remaining(self, tokens: VisualTokens) -> tuple[Tensor, Members | None]:
        """bool, M: the places that remain; and the members of what stands there, None if nothing was merged.

        Args:
            tokens: 1 T n C, of the last reducer.
        """
        slot = _slots(tokens, self.frame, self.place)
        alive = slot >= 0
        if not self.is_merged:
            return alive, None
        left = Members(
            frame=self.frame.masked_fill(~alive, -1),
            place=self.place,
            weight=self.weight,
            where=self.where,
            is_merged=True,
        )
        keep = torch.zeros_like(alive)
        keep[left._middles()[alive].unique()] = True
        return keep, left

    def summed(self, features: Tensor) -> Tensor:
        """M C: in the middle of each group the weighted sum of its members; other rows as they were."""
        alive = (self.frame >= 0).nonzero().squeeze(1).to(features.device)
        target = self._middles().to(features.device)[alive]
        weight = self.weight.to(features.device)[alive].unsqueeze(-1)
        sums = torch.zeros(features.shape, device=features.device).index_add(
            0, target, features[alive].float() * weight
        )
        here = torch.zeros(len(features), 1, dtype=torch.bool, device=features.device)
        here[target] = True
        return torch.where(here, sums.to(features.dtype), features)

    def _middles(self) -> Tensor:
        """int64, M: the member of each token's group that is nearest to the group's middle, the first of equals."""
        alive = (self.frame >= 0).nonzero().squeeze(1)
        middles = torch.full_like(self.frame, -1)
        if not len(alive):
            return middles
        key = self.frame[alive] * (int(self.place.max()) + 1) + self.place[alive]
        group = key.unique(return_inverse=True)[1]
        count = int(group.max()) + 1
        size = torch.zeros(count, 1, dtype=torch.double).index_add(0, group, torch.ones(len(alive), 1).double())
        centre = torch.zeros(count, 2, dtype=torch.double).index_add(0, group, self.where[alive]) / size
        away = (self.where[alive] - centre[group]).square().sum(-1)
        order = np.lexsort((alive.numpy(), away.numpy().round(9), group.numpy()))
        first = np.unique(group.numpy()[order], return_index=True)[1]
        middles[alive] = alive[torch.from_numpy(order[first])][group]
        return middles


def _slots(tokens: VisualTokens, frame: Tensor, place: Tensor) -> Tensor:
    """int64, M: where in its frame (1 T n) a token of that place is; -1 if it is not there any more."""
    index, mask = tokens.index[0].cpu(), tokens.mask[0].cpu()
    places = int(max(int(index.max()) if index.numel() else 0, int(place.max()))) + 1
    table = torch.full((len(index), places + 1), -1)
    number = torch.arange(index.shape[1]).expand(index.shape)
    table.scatter_(1, index.where(mask, places), number.where(mask, -1))
    table[:, places] = -1
    return table[frame.clamp(min=0), place].masked_fill(frame < 0, -1)
