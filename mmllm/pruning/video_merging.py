"""What remains of videos whose tokens became weighted sums, also across frames: as tokens, and as `Groups`.

B videos, T frames, N tokens of a frame, D width, K tokens that remain, S sums that a token is part of at most
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from mmllm.errors import InputError
from mmllm.interfaces import Groups, ProjectedReducer
from mmllm.pruning.selection import check_features
from mmllm.tokens import VisualTokens

_BLOCK_ELEMENTS = 1 << 22
"""Features that are added up at a time, about (16 MiB)."""


class Merged(NamedTuple):
    """What remains of a video, or of a run of its frames."""

    features: Tensor
    """K D."""
    places: Tensor
    """int64, K: place of each in T N."""
    owner: Tensor
    """int64, T N S: the places into which each token went; -1 for none."""
    weight: Tensor
    """float32, T N S: with which weights."""


class VideoMerger(ProjectedReducer):
    """Base of reducers that merge tokens across frames; a subclass writes `merged`, `keeps_all` and its counts."""

    compares_frames = True

    @property
    def keeps_all(self) -> bool:
        """Whether its budget is everything."""
        raise NotImplementedError

    def merged(self, tokens: VisualTokens) -> list[Merged]:
        """What remains of each video.

        Raises:
            InputError: if a score is missing or not finite, or frames have other tokens than it needs.
        """
        raise NotImplementedError

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """B T K of B T N tokens; every frame keeps its own number.

        Raises:
            InputError: for tiled images, if a feature is not finite, and as `merged`.
        """
        self._check(tokens)
        return tokens if self.keeps_all else rebuilt(tokens, self.merged(tokens))

    def groups(self, tokens: VisualTokens) -> Groups | None:
        """How tokens were merged, also across frames; None at a full budget."""
        return self.with_groups(tokens)[1]

    def with_groups(self, tokens: VisualTokens) -> tuple[VisualTokens, Groups | None]:
        """The tokens that remain and how they were merged, of one computation."""
        self._check(tokens)
        if self.keeps_all:
            return tokens, None
        videos = self.merged(tokens)
        return rebuilt(tokens, videos), groups_of(tokens, videos)

    def _check(self, tokens: VisualTokens) -> None:
        if tokens.tiling is not None:
            name = self.registered_name
            raise InputError(f"{name} compares frames in time; for tiled images use hired or divprune")
        check_features(tokens.features, tokens.mask)


def whole_frames(mask: Tensor, reducer: str) -> Tensor:
    """int64: the frames of a video that have tokens (mask: bool, T N).

    Raises:
        InputError: if one of them has fewer tokens than another.
    """
    frames = mask.any(-1).nonzero()[:, 0]
    if not bool(mask[frames].all()):
        raise InputError(f"{reducer} needs frames with the same number of tokens: give it no reducer that keeps fewer")
    return frames


def in_video(places: Tensor, frames: Tensor, count: int) -> Tensor:
    """Places in a run of frames, each of `count` tokens, as places in the whole video; -1 stays.

    Args:
        places: int64, any shape.
        frames: int64. The frames of the run.
        count: N.
    """
    inside = places.clamp(min=0)
    return (frames[inside // count] * count + inside % count).masked_fill(places < 0, -1)


def merged_video(features: Tensor, frames: Tensor, owner: Tensor, weight: Tensor) -> Merged:
    """What remains of a video, of the sums in a run of its frames.

    Args:
        features: T N D.
        frames: int64, F. The frames of the run.
        owner: int64, F N S: the places in the run into which each token goes; -1 for none.
        weight: float32, F N S.
    """
    t, n, width = features.shape
    places = owner[owner >= 0].unique()  # ascending
    sums = torch.zeros(len(places), width, device=features.device)
    for few in torch.arange(len(frames), device=frames.device).split(max(1, _BLOCK_ELEMENTS // (n * width))):
        own = features[frames[few]].float()
        for goes_to, part in zip(owner[few].unbind(-1), weight[few].unbind(-1), strict=True):
            there = goes_to >= 0
            rows = torch.searchsorted(places, goes_to[there])
            sums = sums.index_add(0, rows, own[there] * part[there].unsqueeze(-1))
    whole_owner = owner.new_full((t, n, owner.shape[-1]), -1)
    whole_weight = weight.new_zeros(whole_owner.shape)
    whole_owner[frames], whole_weight[frames] = in_video(owner, frames, n), weight
    return Merged(sums.to(features.dtype), in_video(places, frames, n), whole_owner, whole_weight)


def rebuilt(tokens: VisualTokens, videos: list[Merged]) -> VisualTokens:
    """B T K: the tokens that remain of each video, each in its own frame."""
    b, t, n, width = tokens.shape
    counts = torch.stack([torch.bincount(video.places // n, minlength=t) for video in videos])  # B T
    most = int(counts.max()) if counts.numel() else 0
    features = tokens.features.new_zeros(b, t, most, width)
    kept = torch.zeros(b, t, most, dtype=torch.long, device=features.device)
    mask = torch.arange(most, device=features.device) < counts.unsqueeze(-1)
    for number, video in enumerate(videos):
        order = video.places.argsort(stable=True)
        kept[number][mask[number]] = video.places[order] % n
        features[number][mask[number]] = video.features[order]
    return tokens.take(kept, mask).replace(features=features)


def groups_of(tokens: VisualTokens, videos: list[Merged]) -> Groups:
    """How the tokens of each video were merged; what remains stands at its own place."""
    n, most = tokens.shape[2], max(video.owner.shape[-1] for video in videos)
    slots = _slots(tokens, videos)
    owner = torch.stack([pad(video.owner, (0, most - video.owner.shape[-1]), value=-1) for video in videos])
    weight = torch.stack([pad(video.weight, (0, most - video.weight.shape[-1])) for video in videos])
    there = owner.clamp(min=0)
    slot = torch.stack([own.flatten()[places] for own, places in zip(slots, there, strict=True)])
    slot, frame = slot.masked_fill(owner < 0, -1), there.div(n, rounding_mode="floor")
    if most == 1:
        slot, weight, frame = slot.squeeze(-1), weight.squeeze(-1), frame.squeeze(-1)
    return Groups(owner=slot, weight=weight, frame=frame, keeps_place=True)


def _slots(tokens: VisualTokens, videos: list[Merged]) -> Tensor:
    """int64, B T N: which of its frame's remaining tokens stands at a place."""
    remaining = torch.zeros(tokens.shape[:3], dtype=torch.long, device=tokens.features.device)
    for own, video in zip(remaining, videos, strict=True):
        own.view(-1)[video.places] = 1
    return remaining.cumsum(-1) - 1
