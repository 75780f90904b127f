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
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmllm.errors import InputError
from mmllm.fields import require
from mmllm.interfaces import ProjectedReducer
from mmllm.pruning.budget import BUDGET_GUARD
from mmllm.pruning.density_peaks import cluster_means, density_peaks
from mmllm.pruning.diversity import cosine_distance, max_min_order
from mmllm.pruning.needs import score_of
from mmllm.pruning.selection import check_scores
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


class Segment(NamedTuple):
    """What remains of a segment."""

    features: Tensor
    """K D."""
    places: Tensor
    """int64, K: place of each in L N."""


@register("reducer", "flashvid", config=FlashVidConfig)
class FlashVidReducer(ProjectedReducer):
    """FlashVID: of every frame diverse attended tokens, and means of the others along time and in space."""

    score_choices: ClassVar[tuple[str, ...]] = ("mean_attention", "cls_attention")

    def __init__(self, config: FlashVidConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def scores_needed(self) -> tuple[str, ...]:
        """The attention that tokens receive inside the block that made the features."""
        return (self.config.score,)

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """B T K of B T N tokens; every frame keeps its own number.

        Raises:
            InputError: for tiled images, for frames with different numbers of tokens, or if a feature or a score is not
                finite.
        """
        if tokens.tiling is not None:
            raise InputError("flashvid compares frames in time; for tiled images use hired or divprune")
        scores = score_of(tokens, self.config.score, "flashvid").float()
        check_scores(scores.masked_fill(~tokens.mask, 0.0))
        if self.config.ratio * self.config.expansion >= 1:
            return tokens
        videos = [self._video(*of_video) for of_video in zip(tokens.features, scores, tokens.mask, strict=True)]
        return _rebuilt(tokens, videos)

    def _video(self, features: Tensor, scores: Tensor, mask: Tensor) -> Segment:
        """What remains of a video T N D, with places in T N."""
        frames, count = mask.any(-1).nonzero()[:, 0], mask.shape[-1]
        if not bool(mask[frames].all()):
            raise InputError(
                "flashvid needs frames with the same number of tokens: give it no reducer that keeps fewer"
            )
        parts, start = [], 0
        present, attention = features[frames], scores[frames]
        for length in segment_lengths(present, self.config):
            run = slice(start, start + length)
            part = segment_tokens(present[run], attention[run], self.config)
            frame = frames[start + part.places // count]
            parts.append(Segment(part.features, frame * count + part.places % count))
            start += length
        if not parts:
            return Segment(features.new_zeros(0, features.shape[-1]), frames)
        return Segment(torch.cat([part.features for part in parts]), torch.cat([part.places for part in parts]))

    def kept_tokens(self, tokens_per_frame: int, frames: int) -> int:
        """The most tokens that remain of a whole video: each frame's clusters are rounded up."""
        if self.config.ratio * self.config.expansion >= 1:
            return tokens_per_frame * frames
        selected, merged = self.config.counts(tokens_per_frame)
        return min(tokens_per_frame, selected + merged + (merged > 0)) * frames


def _rebuilt(tokens: VisualTokens, videos: list[Segment]) -> VisualTokens:
    """The tokens that remain of each video, as a batch; `places` of each are in T N."""
    b, t, n, width = tokens.shape
    counts = torch.stack([torch.bincount(video.places // n, minlength=t) for video in videos])  # B T
    most = int(counts.max()) if counts.numel() else 0
    features = tokens.features.new_zeros(b, t, most, width)
    kept = torch.zeros(b, t, most, dtype=torch.long, device=features.device)
    slot = torch.arange(most, device=features.device)
    mask = slot < counts.unsqueeze(-1)
    for number, video in enumerate(videos):
        order = video.places.argsort(stable=True)
        kept[number][mask[number]] = video.places[order] % n
        features[number][mask[number]] = video.features[order]
    return tokens.take(kept, mask).replace(features=features)


def segment_lengths(features: Tensor, config: FlashVidConfig) -> list[int]:
    """The numbers of frames of the segments of a video T N D."""
    frames = len(features)
    if not config.segments or frames < 2:
        return [frames] if frames else []
    means = normalize(features.float().mean(1), dim=-1)
    similarity = (means[:-1] * means[1:]).sum(-1)
    cut = similarity < config.segment_threshold
    missing = min(config.least_segments, frames) - int(cut.sum()) - 1
    if missing > 0:
        cut[similarity.masked_fill(cut, torch.inf).argsort(stable=True)[:missing]] = True
    ends = [*(cut.nonzero()[:, 0] + 1).tolist(), frames]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


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


def segment_tokens(features: Tensor, attention: Tensor, config: FlashVidConfig) -> Segment:
    """What remains of a segment L N D whose tokens receive an attention L N; selected tokens come first."""
    frames, count, _ = features.shape
    selected_count, merged_count = config.counts(count)
    selected = torch.zeros(frames, count, dtype=torch.bool, device=features.device)
    if selected_count:
        selected = selection(features, attention, selected_count, config.method)
    free = torch.ones_like(selected) if frames == 1 and config.released else ~selected
    joined, remaining = features.float(), free
    if frames > 1:
        joined, remaining = merged_along_time(joined, selected, selected_count + merged_count, config)
    parts, places = [features[selected]], [selected.flatten().nonzero()[:, 0]]
    share = merged_count * frames / max(int(remaining.sum()), 1)
    for frame in range(frames if merged_count else 0):
        own = remaining[frame].nonzero()[:, 0]
        if not len(own):
            continue
        tokens, centers = joined[frame, own], own
        if share < 1:
            clusters = math.ceil(len(own) * share - BUDGET_GUARD)
            peaks, cluster = density_peaks(tokens, clusters)
            tokens, centers = cluster_means(tokens, cluster, clusters), own[peaks]
        parts.append(tokens.to(features.dtype))
        places.append(frame * count + centers)
    return Segment(torch.cat(parts), torch.cat(places))


def merged_along_time(features: Tensor, selected: Tensor, budget: int, config: FlashVidConfig) -> tuple[Tensor, Tensor]:
    """Means (float32, L N D) of tokens that were joined along time, and which places still have one (bool, L N).

    Args:
        features: float32, L N D, of at least two frames.
        selected: bool, L N. Tokens that neither join others nor are joined.
        budget: tokens of a frame; so few are joined that L times as many are left, selected ones included.
        config: its threshold, and how a mean counts.
    """
    frames, count, _ = features.shape
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
    sums, sizes = features.clone(), features.new_ones(frames, count)
    for frame in range(frames - 1, 0, -1):  # from the last frame on, so that followers are in their parent's sum
        children = joins[frame - 1].nonzero()[:, 0]
        parents = parent[frame - 1, children]
        own = torch.ones_like(sizes[frame, children]) if config.released else sizes[frame, children]
        sums[frame - 1].index_add_(0, parents, sums[frame, children])
        sizes[frame - 1].index_add_(0, parents, own)
    remaining = ~selected
    remaining[1:] &= ~joins
    return sums / sizes.unsqueeze(-1), remaining
