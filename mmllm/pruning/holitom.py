"""HoliTom: places that stand still become one token for a window of frames, then tokens cluster (NeurIPS 2025).

    windows  = over the whole video, so that as many tokens as possible are saved
    static   = a place that is alike in all neighbours of a window: the mean over its frames, once
    clusters = of the static tokens of a window, and of the other tokens of each frame, around density peaks

The paper also merges tokens inside the LLM: list `fastv:layer=18,ratio=0.5,merge=true` after this reducer
(arXiv 2505.21334).

B videos, T frames, F of them at once, N tokens of a frame, n clustered, D LLM width, M clusters
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mmllm.errors import InputError
from mmllm.fields import require
from mmllm.interfaces import Origin
from mmllm.pruning.budget import BUDGET_GUARD
from mmllm.pruning.density_peaks import density_peaks
from mmllm.pruning.needs import score_of
from mmllm.pruning.selection import equal_frames, top_attended
from mmllm.pruning.static_windows import static_windows
from mmllm.pruning.video_merging import Merged, VideoMerger, merged_video, whole_frames
from mmllm.registry import register
from mmllm.tokens import VisualTokens

_BLOCK_ELEMENTS = 1 << 22
"""Features that are compared at a time, about (16 MiB)."""


@dataclass(frozen=True, kw_only=True)
class HoliTomConfig:
    """The defaults are the paper's at 15 %."""

    ratio: float = 0.15
    """Share of the tokens of a video that remains, but for rounding in each frame."""
    threshold: float = 0.8
    """tau: a place is alike in two frames if its cosine is above this. The authors take 0.65 at 10 %."""
    max_window: int = 1024
    """Frames of a window at most."""
    dynamic: Literal["cluster", "attention"] = "cluster"
    """What remains of the tokens of a frame that are not static: means of clusters, or, as in the paper, those that
    receive most attention."""
    center_weight: float | None = None
    """Share of the center in the token of a cluster, as in the released code (0.6); None for the plain mean."""
    score: Literal["mean_attention", "cls_attention"] = "mean_attention"
    """The attention, for `dynamic=attention`."""

    def __post_init__(self) -> None:
        require(0 < self.ratio <= 1, self, "ratio", "above 0 and at most 1")
        require(-1 <= self.threshold <= 1, self, "threshold", "from -1 to 1")
        require(self.max_window >= 1, self, "max_window", "at least 1 frame")
        require(self.center_weight is None or 0 < self.center_weight < 1, self, "center_weight", "between 0 and 1")


@register("reducer", "holitom", config=HoliTomConfig)
class HoliTomReducer(VideoMerger):
    """HoliTom: one token for places that stand still in a window, then clusters in the window and in each frame."""

    origin = Origin(
        original="cokeshao/HoliTom e9b2972, arXiv 2505.21334",
        compared_with="its rule written out",
        equal="token by token, as released with dynamic=attention,center_weight=0.6; windows by trying all cuts",
    )
    other_needs = "mean_attention or cls_attention with dynamic=attention"

    def __init__(self, config: HoliTomConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def scores_needed(self) -> tuple[str, ...]:
        """No score, unless dynamic tokens are chosen by attention."""
        return (self.config.score,) if self.config.dynamic == "attention" else ()

    @property
    def keeps_all(self) -> bool:
        """Whether its budget is everything."""
        return self.config.ratio == 1

    def merged(self, tokens: VisualTokens) -> list[Merged]:
        """What remains of each video. A static token stands in the first frame of its window."""
        attention: Sequence[Tensor | None] | Tensor = [None] * len(tokens.features)
        if self.scores_needed:
            attention = score_of(tokens, self.config.score, "holitom").float().masked_fill(~tokens.mask, 0.0)
        return [
            self._video(*of_video)
            for of_video in zip(tokens.features, tokens.index, tokens.mask, attention, strict=True)
        ]

    def _video(self, features: Tensor, index: Tensor, mask: Tensor, attention: Tensor | None) -> Merged:
        """What remains of a video T N D."""
        frames, (_, n) = whole_frames(mask, "holitom"), mask.shape
        if not bool((index[frames] == index[frames[:1]]).all()):
            raise InputError("holitom compares the same places of all frames: give it no reducer that keeps others")
        own = features.detach() if len(frames) == len(mask) else features[frames].detach()
        static = similarity(own) > self.config.threshold  # F-1 N
        windows, saved = static_windows(static.cpu().numpy(), self.config.max_window) if len(frames) else ([], 0)
        ratio = min(1.0, self.config.ratio / (1 - saved / max(len(frames) * n, 1)))
        owner, weight = frames.new_full((len(frames), n), -1), torch.zeros(len(frames), n, device=frames.device)
        dynamic = torch.ones_like(mask[frames])
        for first, last in windows:
            if first == last:
                continue
            still = static[first:last].all(0)
            run = slice(first, last + 1)
            dynamic[run] = ~still
            places, weights = self._of_window(own[run, still], ratio, alone=bool(still.all()))
            owner[run, still] = torch.where(places < 0, -1, first * n + still.nonzero()[:, 0][places])
            weight[run, still] = weights
        self._of_frames(own, None if attention is None else attention[frames], dynamic, ratio, owner, weight)
        return merged_video(features, frames, owner.unsqueeze(-1), weight.unsqueeze(-1))

    def _of_window(self, features: Tensor, ratio: float, *, alone: bool) -> tuple[Tensor, Tensor]:
        """Number of the place that each static place of a window goes into (int64, n; -1 for none), and its weight.

        Args:
            features: L n D.
            ratio: share of the places that remains.
            alone: whether the window has nothing else; at least one then remains.
        """
        length, count = features.shape[:2]
        clusters = min(count, max(round(count * ratio), int(alone)))
        if not clusters:
            return torch.full((count,), -1, device=features.device), torch.zeros(count, device=features.device)
        means = features.mean(0, keepdim=True, dtype=torch.float32)
        centers, cluster = density_peaks(means, clusters)
        weights = member_weights(centers, cluster, self.config.center_weight) / length
        return centers.gather(1, cluster)[0], weights[0]

    def _of_frames(
        self, features: Tensor, attention: Tensor | None, dynamic: Tensor, ratio: float, owner: Tensor, weight: Tensor
    ) -> None:
        """Writes into `owner` and `weight` (F N) where the dynamic tokens of each frame go.

        Args:
            features: F N D.
            attention: float32, F N.
            dynamic: bool, F N.
            ratio: share of the dynamic tokens of a frame that remains, rounded up.
        """
        tokens, width = dynamic.shape[1], features.shape[-1]
        for all_frames, all_own, present in equal_frames(dynamic):
            clusters = min(present, math.ceil(present * ratio - BUDGET_GUARD))
            few = max(1, _BLOCK_ELEMENTS // (present * width))
            for frames, own in zip(all_frames.split(few), all_own.split(few), strict=True):
                rows = frames.unsqueeze(-1)
                if attention is not None:
                    best = own.gather(1, top_attended(attention[rows, own], clusters))
                    owner[rows, best], weight[rows, best] = rows * tokens + best, 1.0
                    continue
                centers, cluster = density_peaks(features[rows, own], clusters)
                owner[rows, own] = rows * tokens + own.gather(1, centers.gather(1, cluster))
                weight[rows, own] = member_weights(centers, cluster, self.config.center_weight)

    def kept_tokens(self, tokens_per_frame: int, frames: int) -> int:
        """The most tokens that remain of a whole video: each frame and each window rounds."""
        whole = tokens_per_frame * frames
        return min(whole, int(whole * self.config.ratio + 1.5 * frames))


def similarity(features: Tensor) -> Tensor:
    """float32, F-1 N: the cosine of each token F N D and the one at its place in the next frame; 0 with a zero one."""
    few = max(1, _BLOCK_ELEMENTS // max(features[:1].numel(), 1))
    alike = [torch.zeros(0, features.shape[1], device=features.device)]
    for a, b in zip(features[:-1].split(few), features[1:].split(few), strict=True):
        dot, size = (a.float() * b.float()).sum(-1), a.float().norm(dim=-1) * b.float().norm(dim=-1)
        alike.append(dot / size.clamp(min=torch.finfo(size.dtype).tiny))
    return torch.cat(alike)


def member_weights(centers: Tensor, cluster: Tensor, center_weight: float | None) -> Tensor:
    """float32, F n: the weight of each token in the token that its cluster becomes.

    Args:
        centers: int64, F M.
        cluster: int64, F n. Of each token.
        center_weight: that of the center; the others share the rest. None for equal weights.
    """
    size = torch.zeros(centers.shape, device=centers.device)
    size = size.scatter_add(1, cluster, torch.ones_like(cluster, dtype=size.dtype)).gather(1, cluster)
    if center_weight is None:
        return 1 / size
    is_center = torch.zeros_like(cluster, dtype=torch.bool).scatter(1, centers, True)
    shared = (1 - center_weight) / (size - 1).clamp(min=1)
    return torch.where(is_center, center_weight, shared).masked_fill(size == 1, 1.0)
