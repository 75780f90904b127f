"""Which tokens of a medium a merged token is made of, followed through several reducers.

T frames, n tokens of a frame, M tokens of a medium, E parts, S sums that a token is part of at most, C width
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

_BLOCK_TOKENS = 4096
"""Tokens that are added up at a time, so that little is held beside the features."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Members:
    """The E parts of the reducers' tokens: each is one of the M tokens with a weight. A token may be several parts."""

    token: Tensor
    """int64, E. Which of the M tokens."""
    frame: Tensor
    """int64, E. The frame of the reducers' token that it is part of."""
    place: Tensor
    """int64, E. Its `VisualTokens.index`."""
    weight: Tensor
    """float32, E."""
    may_stand: Tensor
    """bool, E. Whether the reducers' token may stand where this part stands; where several may, it is in their middle.
    No two tokens have such a part in common."""
    where: Tensor
    """float64, M 2. Row and column of each of the M tokens, to find the middle."""
    is_merged: bool = False

    @classmethod
    def of(cls, medium: Medium, slots: Tensor) -> Members:
        """Each token by itself.

        Args:
            medium: the medium.
            slots: int64, T n. The place of each token among the M; -1 at padding.
        """
        frame, _ = (slots >= 0).nonzero(as_tuple=True)
        token, place = slots[slots >= 0], cast(Tensor, medium.place_of)
        columns = medium.grid[1] if medium.grid else medium.count
        where = torch.stack([place.div(columns, rounding_mode="floor"), place % columns], -1).double()
        alone = torch.ones(len(token))
        return cls(token=token, frame=frame, place=place[token], weight=alone, may_stand=alone.bool(), where=where)

    def merged(self, before: VisualTokens, after: VisualTokens, groups: Groups) -> Members:
        """Members after a reducer that merges.

        Args:
            before, after: the reducer's input and output, 1 T n C.
            groups: what it says of them.
        """
        slot = _slots(before, self.frame, self.place)
        part = (slot >= 0).nonzero().squeeze(1)
        own = self.frame[part], slot[part]
        owner = _of_each(groups.owner[0].cpu()[own])  # E S
        part, number = part.unsqueeze(1).expand_as(owner)[owner >= 0], owner[owner >= 0]
        weight = _of_each(groups.weight[0].cpu()[own]).float()[owner >= 0]
        frame = self.frame[part] if groups.frame is None else _of_each(groups.frame[0].cpu()[own])[owner >= 0]
        place = after.index[0].cpu()[frame, number]
        stays = (frame == self.frame[part]) & (place == self.place[part]) | (not groups.keeps_place)
        return Members(
            token=self.token[part],
            frame=frame,
            place=place,
            weight=self.weight[part] * weight,
            may_stand=self.may_stand[part] & stays,
            where=self.where,
            is_merged=True,
        )

    def remaining(self, tokens: VisualTokens) -> tuple[Tensor, Members | None]:
        """bool, M: the places that remain; and the members of what stands there, None if nothing was merged.

        Args:
            tokens: 1 T n C, of the last reducer.
        """
        alive = _slots(tokens, self.frame, self.place) >= 0
        left = Members(
            token=self.token[alive],
            frame=self.frame[alive],
            place=self.place[alive],
            weight=self.weight[alive],
            may_stand=self.may_stand[alive],
            where=self.where,
            is_merged=self.is_merged,
        )
        keep = torch.zeros(len(self.where), dtype=torch.bool)
        keep[left._homes() if self.is_merged else left.token] = True
        return keep, left if self.is_merged else None

    def summed(self, features: Tensor) -> Tensor:
        """M C: where each group stands the weighted sum of its members; other rows as they were."""
        homes, group = (part.to(features.device) for part in self._homes().unique(return_inverse=True))
        token, weight = self.token.to(features.device), self.weight.to(features.device).unsqueeze(-1)
        sums = torch.zeros(len(homes), features.shape[-1], device=features.device)
        for part in torch.arange(len(token), device=features.device).split(_BLOCK_TOKENS):
            sums = sums.index_add(0, group[part], features[token[part]].float() * weight[part])
        return features.index_copy(0, homes, sums.to(features.dtype))

    def _homes(self) -> Tensor:
        """int64, E: the one of the M tokens at which each part's group stands.

        That is the part that may, nearest to the middle of those that may, the first of equals.
        """
        if not len(self.token):
            return self.token
        key = self.frame * (int(self.place.max()) + 1) + self.place
        group = key.unique(return_inverse=True)[1]
        token, standing = self.token[self.may_stand], group[self.may_stand]
        count, where = int(group.max()) + 1, self.where[token]
        size = torch.zeros(count, 1, dtype=torch.double).index_add(0, standing, torch.ones(len(where), 1).double())
        centre = torch.zeros(count, 2, dtype=torch.double).index_add(0, standing, where) / size
        away = (where - centre[standing]).square().sum(-1)
        order = np.lexsort((token.numpy(), away.numpy().round(9), standing.numpy()))
        first = np.unique(standing.numpy()[order], return_index=True)[1]
        return token[torch.from_numpy(order[first])][group]


def _of_each(values: Tensor) -> Tensor:
    """Values E, or E S for tokens that go into several groups: E S."""
    return values.unsqueeze(-1) if values.ndim == 1 else values


def _slots(tokens: VisualTokens, frame: Tensor, place: Tensor) -> Tensor:
    """int64, E: where in its frame (1 T n) a token of that place is; -1 if it is not there any more."""
    index, mask = tokens.index[0].cpu(), tokens.mask[0].cpu()
    places = max(int(values.max()) if values.numel() else 0 for values in (index, place)) + 1
    table = torch.full((len(index), places + 1), -1)
    number = torch.arange(index.shape[1]).expand(index.shape)
    table.scatter_(1, index.where(mask, places), number.where(mask, -1))
    table[:, places] = -1
    return table[frame, place]
