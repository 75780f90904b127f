"""FlashVID: diverse and attended tokens stay, the others are merged along time, then in space (ICLR 2026, 2602.08024).

    segments   = runs of like frames
    selected   = of every frame, tokens far from each other that receive attention
    merged     = each other token joins the most similar one of the frame before, if it is similar enough
    clustered  = what is left in a frame becomes a few means

The paper also drops tokens inside the LLM: list `fastv:layer=20,ratio=0.3` after this reducer. `expansion` makes room
for what is dropped there.

B videos, T frames, L frames of a segment, N tokens of a frame, D LLM width, K kept of a frame, R tokens not selected
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmllm.errors import ConfigError
from mmllm.fields import require
from mmllm.interfaces import Groups, Origin
from mmllm.pruning.budget import BUDGET_GUARD
from mmllm.pruning.density_peaks import density_peaks
from mmllm.pruning.diversity import cosine_distance, max_min_order
from mmllm.pruning.needs import score_of
from mmllm.pruning.segments import runs_of_like_frames
from mmllm.pruning.selection import check_scores
from mmllm.pruning.video_merging import Merged, VideoMerger, in_video, whole_frames
from mmllm.registry import register
from mmllm.tokens import VisualTokens

_ATTENTION_SCALE = 1e6


@dataclass(frozen=True, kw_only=True)
class FlashVidConfig:
    """FlashVID's settings under the names of the paper's code, where those are words."""

    ratio: float = 0.1
    """Share of the tokens that the LLM works on, on average over its layers if it drops some itself."""
    expansion: float = 1.25
    """The LLM gets `ratio` times this. 1 if no reducer inside the LLM follows."""
    alpha: float = 0.7
    """Share of a frame's budget for selected tokens; the rest is for merged ones."""
    method: Literal["attention", "attention-and-event"] = "attention-and-event"
    """What distances are multiplied by: the attention that a token receives (the code's attn_div), or also its likeness
    to the frames of its segment (attn_div_v2)."""
    segments: bool = True
    """Cut the video where it changes; False treats it as one segment."""
    segment_threshold: float = 0.9
    """Frames whose means have a cosine below this begin a new segment."""
    least_segments: int = 8
    """The least alike neighbours are cut, too, until there are so many segments."""
    merge_threshold: float = 0.8
    """A token joins one of the frame before if their cosine is above this."""
    released: bool = False
    """As the released code does: a mean of merged tokens counts a token's own followers without their number, and a
    segment of one frame clusters selected tokens once more."""
    score: Literal["mean_attention", "cls_attention"] = "mean_attention"
    """The attention of a token."""

    def __post_init__(self) -> None:
        require(0 < self.ratio <= 1, self, "ratio", "above 0 and at most 1")
        require(self.expansion >= 1, self, "expansion", "at least 1")
        require(0 <= self.alpha <= 1, self, "alpha", "from 0 to 1")
        require(-1 <= self.segment_threshold <= 1, self, "segment_threshold", "from -1 to 1")
        require(self.least_segments >= 1, self, "least_segments", "at least 1")
        require(-1 <= self.merge_threshold <= 1, self, "merge_threshold", "from -1 to 1")

    def counts(self, tokens: int) -> tuple[int, int]:
        """Tokens of a frame that are selected, and that others are merged into."""
        budget = min(tokens, math.ceil(tokens * self.ratio * self.expansion - BUDGET_GUARD))
        selected = math.ceil(budget * self.alpha - BUDGET_GUARD)
        return selected, budget - selected


@register("reducer", "flashvid", config=FlashVidConfig)
class FlashVidReducer(VideoMerger):
    """FlashVID: of every frame diverse attended tokens, and means of the others along time and in space."""

    origin = Origin(
        original="Fanziyang-v/FlashVID 1d37422, arXiv 2602.08024",
        compared_with="outputs of its code",
        equal="with released=true, in five cases: segments and places exactly, features <= 1e-6",
    )
    score_choices: ClassVar[tuple[str, ...]] = ("mean_attention", "cls_attention")

    def __init__(self, config: FlashVidConfig) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def settings_at(cls, share: float, *, tokens: int, layers: int) -> dict[str, Any]:
        """The ratio, and no more for a reducer inside the LLM that does not follow."""
        return {"ratio": share, "expansion": 1}

    @property
    def scores_needed(self) -> tuple[str, ...]:
        """The attention that tokens receive inside the block that made the features."""
        return (self.config.score,)

    @property
    def keeps_all(self) -> bool:
        """Whether its budget is everything."""
        return self.config.ratio * self.config.expansion >= 1

    def with_groups(self, tokens: VisualTokens) -> tuple[VisualTokens, Groups | None]:
        """The tokens that remain and how they were merged.

        Raises:
            ConfigError: with `released`, where a selected token may also be part of a mean.
        """
        if self.config.released:
            raise ConfigError("flashvid:released=true counts some tokens twice, which is no weighted sum of each once")
        return super().with_groups(tokens)

    def merged(self, tokens: VisualTokens) -> list[Merged]:
        """What remains of each video, by the attention of its tokens."""
        scores = score_of(tokens, self.config.score, "flashvid").float()
        check_scores(scores.masked_fill(~tokens.mask, 0.0))
        return [self._video(*of_video) for of_video in zip(tokens.features, scores, tokens.mask, strict=True)]

    def _video(self, features: Tensor, scores: Tensor, mask: Tensor) -> Merged:
        """What remains of a video T N D, with places in T N."""
        frames, count, start = whole_frames(mask, "flashvid"), mask.shape[-1], 0
        kept, places = [features.new_zeros(0, features.shape[-1])], [frames[:0]]
        owner, weight = frames.new_full((*mask.shape, 1), -1), scores.new_zeros(*mask.shape, 1)
        for length in segment_lengths(features[frames], self.config):
            run = frames[start : start + length]
            part = segment_tokens(features[run], scores[run], self.config)
            kept.append(part.features)
            places.append(in_video(part.places, run, count))
            owner[run], weight[run] = in_video(part.owner, run, count), part.weight
            start += length
        return Merged(torch.cat(kept), torch.cat(places), owner, weight)

    def kept_tokens(self, tokens_per_frame: int, frames: int) -> int:
        """The most tokens that remain of a whole video: each frame's clusters are rounded up."""
        if self.keeps_all:
            return tokens_per_frame * frames
        selected, merged = self.config.counts(tokens_per_frame)
        return min(tokens_per_frame, selected + merged + (merged > 0)) * frames


def segment_lengths(features: Tensor, config: FlashVidConfig) -> list[int]:
    """The numbers of frames of the segments of a video T N D."""
    if not config.segments and len(features):
        return [len(features)]
    return runs_of_like_frames(features, threshold=config.segment_threshold, least=config.least_segments)


def selection(features: Tensor, attention: Tensor, count: int, method: str) -> Tensor:
    """bool, L N: the `count` tokens of each frame that are selected.

    Args:
        features: float, L N D.
        attention: float32, L N.
        count: from 1 to N.
        method: see `FlashVidConfig.method`.
    """
    features = features.float()
    weight = _ATTENTION_SCALE * attention
    if method == "attention-and-event":
        weight = weight * torch.einsum("lnd,md->lnm", features, features.mean(1)).mean(-1)
    order = max_min_order(cosine_distance(features) * weight.unsqueeze(-2), count)
    return torch.zeros_like(attention, dtype=torch.bool).scatter(1, order, True)


def segment_tokens(features: Tensor, attention: Tensor, config: FlashVidConfig) -> Merged:
    """What remains of a segment L N D whose tokens receive an attention L N; selected tokens come first."""
    frames, count, _ = features.shape
    selected_count, merged_count = config.counts(count)
    selected = torch.zeros(frames, count, dtype=torch.bool, device=features.device)
    if selected_count:
        selected = selection(features, attention, selected_count, config.method)
    free = torch.ones_like(selected) if frames == 1 and config.released else ~selected
    root, size = roots(features.float(), selected, selected_count + merged_count, config)  # L N each
    place = torch.arange(frames * count, device=features.device).view(frames, count)
    means = _sums(features.float(), root, free / size.flatten()[root])
    # what is left in a frame becomes a few means
    remaining = free & (root == place)
    share = merged_count * frames / max(int(remaining.sum()), 1)
    center, members = torch.full_like(place, -1), torch.ones_like(size)  # of roots
    for frame in range(frames if merged_count else 0):
        own = remaining[frame].nonzero()[:, 0]
        if not len(own):
            continue
        center[frame, own] = place[frame, own]
        if share < 1:
            clusters = math.ceil(len(own) * share - BUDGET_GUARD)
            peaks, cluster = (part[0] for part in density_peaks(means[frame, own].unsqueeze(0), clusters))
            center[frame, own] = place[frame, own[peaks[cluster]]]
            members[frame, own] = torch.bincount(cluster, minlength=clusters).to(size)[cluster]
    owner = center.flatten()[root].masked_fill(~free, -1)
    weight = (owner >= 0) / (size.flatten()[root] * members.flatten()[root])
    merged_places = owner[owner >= 0].unique()
    merged = _sums(features.float(), owner.clamp(min=0), weight).flatten(0, 1)[merged_places]
    own_places = place[selected]
    return Merged(
        features=torch.cat([features[selected], merged.to(features.dtype)]),
        places=torch.cat([own_places, merged_places]),
        owner=torch.where(selected, place, owner).unsqueeze(-1),
        weight=weight.masked_fill(selected, 1.0).unsqueeze(-1),
    )


def _sums(features: Tensor, owner: Tensor, weight: Tensor) -> Tensor:
    """L N D: at each place of L N the weighted sum of the features (L N D) that it owns."""
    weighted = (features * weight.unsqueeze(-1)).flatten(0, 1)
    return torch.zeros_like(weighted).index_add(0, owner.flatten(), weighted).view_as(features)


def roots(features: Tensor, selected: Tensor, budget: int, config: FlashVidConfig) -> tuple[Tensor, Tensor]:
    """The place in L N of the token that each one was joined to along time, its own if to none; and the divisor there.

    Args:
        features: float32, L N D.
        selected: bool, L N. Tokens that neither join others nor are joined.
        budget: tokens of a frame; so few are joined that L times as many are left, selected ones included.
        config: its threshold, and how a mean counts.

    Returns:
        int64, L N; and float32, L N: of a token that others have joined, the number by which their sum is divided.
    """
    frames, count, _ = features.shape
    root = torch.arange(frames * count, device=features.device).view(frames, count)
    size = features.new_ones(frames, count)
    if frames == 1:
        return root, size
    unit = normalize(features, dim=-1)
    similarity = unit[1:] @ unit[:-1].mT  # L-1 N N: tokens of a frame by those of the frame before
    similarity = similarity.masked_fill(selected[1:, :, None] | selected[:-1, None, :], -1.0)
    best, parent = similarity.max(-1)
    most = frames * count - budget * frames
    threshold = config.merge_threshold
    if int((best > threshold).sum()) > most:
        ranked = best.flatten().sort(descending=True).values
        threshold = max(float(ranked[most - 1]) if most else math.inf, -1 + 1e-6)
    joins = (best > threshold) & ~selected[1:]
    for frame in range(frames - 1, 0, -1):  # from the last frame on, so that a parent knows its followers' number
        children = joins[frame - 1].nonzero()[:, 0]
        own = torch.ones_like(size[frame, children]) if config.released else size[frame, children]
        size[frame - 1].index_add_(0, parent[frame - 1, children], own)
    for frame in range(1, frames):
        root[frame] = torch.where(joins[frame - 1], root[frame - 1, parent[frame - 1]], root[frame])
    return root, size
