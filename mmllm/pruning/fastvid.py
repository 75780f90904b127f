"""FastVID: of every frame its attended tokens, and of every segment means around density peaks (NeurIPS 2025).

    segments = runs of like frames
    attended = of every frame, the tokens that receive most attention
    context  = in every fourth frame, counted from a segment's end, centers that the segment's other tokens join

A token joins one center of each of these frames. As many tokens remain as frames have budget (arXiv 2503.11187).

B videos, T frames, F of them that have tokens, N tokens of a frame, R not attended, D LLM width, M centers of a frame
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmllm.fields import require
from mmllm.interfaces import Grid, Origin
from mmllm.pruning.budget import BUDGET_GUARD
from mmllm.pruning.density_peaks import peak_order
from mmllm.pruning.needs import score_of
from mmllm.pruning.segments import runs_of_like_frames
from mmllm.pruning.selection import check_scores, rows_at, top_attended
from mmllm.pruning.video_merging import Merged, VideoMerger, merged_video, whole_frames
from mmllm.registry import register
from mmllm.tokens import VisualTokens

_NEIGHBOURS = 4
"""k of the density."""


@dataclass(frozen=True, kw_only=True)
class FastVidConfig:
    """The defaults are the paper's for LLaVA-OneVision."""

    ratio: float = 0.1
    """Share of the tokens of each frame, rounded down, at least one token; so many remain of the video."""
    context: float = 0.4
    """d: share of a frame's budget for context tokens; the rest is for attended ones."""
    interval: int = 4
    """p: of so many frames, counted from the end of a segment, one has context tokens. Fewer where they do not fit."""
    center_weight: float = 0.6
    """beta: share of a center in its token, the mean of all that joined it has the rest. At least 1 / (members + 1)."""
    segment_threshold: float = 0.9
    """Frames whose means have a cosine below this begin a new segment."""
    least_segments: int = 8
    """c: the least alike neighbours are cut, too, until there are so many segments."""
    score: Literal["mean_attention", "cls_attention", "probe_attention"] = "mean_attention"
    """The attention; the released code takes that of SigLIP's pooling head, `probe_attention`."""

    def __post_init__(self) -> None:
        require(0 < self.ratio <= 1, self, "ratio", "above 0 and at most 1")
        require(0 <= self.context <= 1, self, "context", "from 0 to 1")
        require(self.interval >= 1, self, "interval", "at least 1 frame")
        require(0 <= self.center_weight <= 1, self, "center_weight", "from 0 to 1")
        require(-1 <= self.segment_threshold <= 1, self, "segment_threshold", "from -1 to 1")
        require(self.least_segments >= 1, self, "least_segments", "at least 1")

    def counts(self, tokens: int) -> tuple[int, int]:
        """Attended tokens of a frame of so many, and its budget for context tokens."""
        budget = max(1, int(tokens * self.ratio + BUDGET_GUARD))
        context = int(budget * self.context + BUDGET_GUARD)
        return budget - context, context


class Joined(NamedTuple):
    """What joins the centers of one frame: the tokens of its segment that are not attended."""

    frames: slice
    """The segment."""
    number: int
    """Of the frame among those of its segment that have centers."""
    place: Tensor
    """int64, L R: the place in F N of the center that each token joins."""
    weight: Tensor
    """float32, L R: with which weight."""


@register("reducer", "fastvid", config=FastVidConfig)
class FastVidReducer(VideoMerger):
    """FastVID: of every frame attended tokens, and of every segment means around density peaks."""

    origin = Origin(
        original="arXiv 2503.11187",
        compared_with="its rule written out",
        equal="token by token; numbers of tokens exactly",
    )
    score_choices: ClassVar[tuple[str, ...]] = ("mean_attention", "cls_attention", "probe_attention")

    def __init__(self, config: FastVidConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def scores_needed(self) -> tuple[str, ...]:
        """The attention by which tokens are chosen."""
        return (self.config.score,)

    @property
    def keeps_all(self) -> bool:
        """Whether its budget is everything."""
        return self.config.ratio == 1

    def ranking(self, tokens: VisualTokens) -> Tensor:
        """float32, B T N: the attention."""
        return score_of(tokens, self.config.score, "fastvid").float()

    def merged(self, tokens: VisualTokens) -> list[Merged]:
        """What remains of each video."""
        attention = self.ranking(tokens)
        check_scores(attention.masked_fill(~tokens.mask, 0.0))
        return [self._video(*of_video) for of_video in zip(tokens.features, attention, tokens.mask, strict=True)]

    def _video(self, features: Tensor, attention: Tensor, mask: Tensor) -> Merged:
        """What remains of a video T N D."""
        frames = whole_frames(mask, "fastvid")
        own, (f, n) = features if len(frames) == len(mask) else features[frames], mask[frames].shape
        salient, _ = self.config.counts(n)
        attended = top_attended(attention[frames], salient)  # F K
        is_rest = torch.ones_like(mask[frames]).scatter(1, attended, False)
        rest = is_rest.nonzero()[:, 1].view(f, n - salient)
        joined = list(self._joined(own.detach(), rest))
        most = max((of_frame.number + 1 for of_frame in joined), default=1)
        owner, weight = rest.new_full((f, n, most), -1), torch.zeros(f, n, most, device=rest.device)
        row = torch.arange(f, device=rest.device).unsqueeze(-1)
        owner[row, attended, 0], weight[row, attended, 0] = row * n + attended, 1.0
        for of_frame in joined:
            run, places = row[of_frame.frames], rest[of_frame.frames]
            owner[run, places, of_frame.number] = of_frame.place
            weight[run, places, of_frame.number] = of_frame.weight
        return merged_video(features, frames, owner, weight)

    def _joined(self, features: Tensor, rest: Tensor) -> Iterator[Joined]:
        """What joins the centers of each frame that has some.

        Args:
            features: F N D.
            rest: int64, F R. The tokens of each frame that are not attended.
        """
        (_, n, _), width, start = features.shape, rest.shape[1], 0
        _, context = self.config.counts(n)
        if not context:
            return
        lengths = runs_of_like_frames(
            features, threshold=self.config.segment_threshold, least=self.config.least_segments
        )
        for length in lengths:
            run = slice(start, start + length)
            counts = context_counts(length, context, room=width, interval=self.config.interval)
            anchors = [frame for frame, count in enumerate(counts) if count]
            others = rows_at(features[run], rest[run]).float()  # L R D
            orders, unit = peak_order(others[anchors], _NEIGHBOURS), normalize(others, dim=-1)
            for number, anchor in enumerate(anchors):
                frame = start + anchor
                centers = orders[number, : counts[anchor]]  # M
                joins = (unit.flatten(0, 1) @ unit[anchor, centers].mT).argmax(-1)  # L R, flat
                slot = anchor * width + centers
                joins[slot] = torch.arange(len(centers), device=joins.device)  # a center is its own
                members = torch.bincount(joins, minlength=len(centers)).float()
                share = (1 / (members + 1)).clamp(min=self.config.center_weight)
                weight = ((1 - share) / members)[joins].index_add(0, slot, share)
                place = (frame * n + rest[frame, centers])[joins]
                yield Joined(run, number, place.view(length, width), weight.view(length, width))
            start += length

    def kept_tokens(self, tokens_per_frame: int, frames: int) -> int:
        """The tokens that remain of a whole video."""
        return sum(self.config.counts(tokens_per_frame)) * frames

    def counts_by_shape(self, tokens_per_frame: int, frames: int, grid: Grid) -> int:
        """`kept_tokens`, which is exact; its segments share it among the frames."""
        return self.kept_tokens(tokens_per_frame, frames)


def context_counts(length: int, context: int, *, room: int, interval: int) -> list[int]:
    """How many context tokens each frame of a segment has; together its frames have their whole budget.

    The last frame has some, and every `interval`-th before it; those nearer to the end take what cannot be shared
    evenly. Where so few frames have no room for all, the interval is shorter.

    Args:
        length: frames of the segment.
        context: budget of each frame, at most `room`.
        room: tokens of a frame that may be centers.
        interval: at least 1.
    """
    total = length * context
    shorter = next(every for every in range(interval, 0, -1) if total <= -(-length // every) * room)
    anchors = range(length - 1, -1, -shorter)
    counts = [0] * length
    for number, frame in enumerate(anchors):
        counts[frame] = total // len(anchors) + (number < total % len(anchors))
    return counts
