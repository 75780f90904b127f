"""VidCom2: frames that differ from the video keep more tokens, tokens that differ most stay (EMNLP 2025, 2505.14454).

    video score of a token = likeness to the mean token of the video;   frame score = likeness to that of its frame
    a frame's share        = larger if its tokens have low video scores
    inside a frame         = the tokens with the lowest sum of both scores stay

B videos, T frames, N tokens of a frame, D LLM width, C channels compared
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmllm.errors import InputError
from mmllm.fields import require
from mmllm.interfaces import Grid, Origin, ProjectedReducer
from mmllm.pruning.budget import BUDGET_GUARD
from mmllm.pruning.selection import check_features, ranks, top_counted
from mmllm.registry import register
from mmllm.tokens import VisualTokens

_BANDWIDTHS = (0.125, 0.25, 0.5, 1.0, 2.0)
_BLOCK_ELEMENTS = 1 << 22
"""Features that are compared at a time, about (16 MiB)."""
_TEMPERATURE = 0.01
"""Of the softmax that shares the budget among frames."""


@dataclass(frozen=True, kw_only=True)
class VidCom2Config:
    """What remains of a video."""

    ratio: float = 0.25
    """Share of all tokens that remains."""
    exact: bool = True
    """Keep exactly `ratio` of all tokens, at least as many as there are frames, so that the number is known beforehand
    (as vLLM does). False: as released, where rounding in each frame changes the number a little."""

    def __post_init__(self) -> None:
        require(0 < self.ratio <= 1, self, "ratio", "above 0 and at most 1")


@register("reducer", "vidcom2", config=VidCom2Config)
class VidCom2Reducer(ProjectedReducer):
    """VidCom2: one budget for a video; frames and tokens that differ from it most keep more of it."""

    origin = Origin(
        original="xuyang-liu16/VidCom2 944a17d, exact=true: vLLM 0.32.0; arXiv 2505.14454",
        compared_with="its rule written out",
        equal="scores number by number; numbers of tokens exactly",
    )
    compares_frames = True

    def __init__(self, config: VidCom2Config) -> None:
        super().__init__()
        self.config = config

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """B T K of B T N tokens; every frame keeps its own number.

        Raises:
            InputError: for tiled images, or if a feature is not finite.
        """
        if tokens.tiling is not None:
            raise InputError("vidcom2 compares frames in time; for tiled images use hired or divprune")
        kept = torch.stack(
            [self._kept(features, mask) for features, mask in zip(tokens.features, tokens.mask, strict=True)]
        )
        chosen, mask = top_counted(kept.float(), kept.sum(-1), tokens.mask)
        return tokens.take(chosen, mask)

    def _kept(self, features: Tensor, mask: Tensor) -> Tensor:
        """bool, T N: the tokens of a video (T N D) that remain."""
        video_score, frame_score = likeness(features, mask)
        total = video_score + frame_score
        counts = frame_counts(video_score, mask, self.config.ratio)
        kept = (ranks((-total).masked_fill(~mask, -torch.inf)) < counts.unsqueeze(-1)) & mask
        frames, present = int(mask.any(-1).sum()), int(mask.sum())
        return (
            corrected(kept, total, mask, exact_count(frames, present, self.config.ratio)) if self.config.exact else kept
        )

    def ranking(self, tokens: VisualTokens) -> Tensor:
        """float32, B T N: how much each token differs from its video and its frame."""
        pairs = [likeness(features, mask) for features, mask in zip(tokens.features, tokens.mask, strict=True)]
        return -torch.stack([video_score + frame_score for video_score, frame_score in pairs])

    def kept_tokens(self, tokens_per_frame: int, frames: int) -> int:
        """The tokens that remain of a whole video; an upper bound with `exact=false`."""
        whole = tokens_per_frame * frames
        if self.config.exact:
            return exact_count(frames, whole, self.config.ratio)
        # a frame gets at most twice the mean share, and each frame is rounded up by half a token at most
        return min(whole, int(whole * self.config.ratio) * 2 + frames)

    def counts_by_shape(self, tokens_per_frame: int, frames: int, grid: Grid) -> int | None:
        """`kept_tokens` if it is `exact`; what differs shares it among the frames."""
        return self.kept_tokens(tokens_per_frame, frames) if self.config.exact else None


def exact_count(frames: int, tokens: int, ratio: float) -> int:
    """The tokens that remain of so many in so many frames: at least as many as there are frames."""
    return max(frames, int(tokens * ratio + BUDGET_GUARD))


def likeness(features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """float32, T N each: how like each token is to the mean of the video, and to that of its frame, 0 to 5.

    Only the half of the channels that varies least is compared, as unit vectors.

    Args:
        features: T N D.
        mask: bool, T N. Masked tokens count for nothing and get 0.

    Raises:
        InputError: if a feature is not finite.
    """
    features = features.detach().float()
    check_features(features, mask)
    present = features.flatten(0, 1) if bool(mask.all()) else features[mask]  # (all tokens) D
    if not len(present):
        return torch.zeros_like(features[..., 0]), torch.zeros_like(features[..., 0])
    channels = present.var(0, unbiased=False).topk(max(1, features.shape[-1] // 2), largest=False).indices
    unit = features[..., channels]
    unit /= unit.norm(dim=-1, keepdim=True).clamp(min=1e-12)  # T N C
    weight = mask.unsqueeze(-1).float()
    of_frame = (unit * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)
    of_video = (unit * weight).sum((0, 1)) / weight.sum()
    return (
        _gaussians(unit, of_video).masked_fill(~mask, 0.0),
        _gaussians(unit, of_frame).masked_fill(~mask, 0.0),
    )


def _gaussians(values: Tensor, center: Tensor) -> Tensor:
    """T N: sum of Gaussians of several widths of the distance of values T N C from a center, C or T 1 C."""
    few = max(1, _BLOCK_ELEMENTS // max(values[:1].numel(), 1))  # frames at a time: little is held beside the features
    centers = center.expand(len(values), 1, values.shape[-1])
    parts = zip(values.split(few), centers.split(few), strict=True)
    squared = torch.cat([(part - own).square().sum(-1) for part, own in parts])
    widths = squared.new_tensor(_BANDWIDTHS)
    return (-squared.unsqueeze(-1) / (2 * widths)).exp().sum(-1)


def frame_counts(video_score: Tensor, mask: Tensor, ratio: float) -> Tensor:
    """int64, T: how many tokens each frame keeps, at least one; as released, so that their sum is not exact.

    Args:
        video_score: T N.
        mask: bool, T N. A frame without any token keeps none and takes no part in sharing.
        ratio: share of all tokens.
    """
    present = mask.sum(-1)
    has_tokens = present > 0
    mean = (video_score * mask).sum(-1) / present.clamp(min=1)
    logits = (-mean / _TEMPERATURE).masked_fill(~has_tokens, -torch.inf)
    share = (logits - logits.max()).softmax(-1)
    scale = ratio * (1 + share - share.sum() / has_tokens.sum().clamp(min=1))
    counts = (scale.clamp(max=1.0) * present).round().long().clamp(min=1)
    return torch.minimum(counts, present)


def corrected(kept: Tensor, total: Tensor, mask: Tensor, target: int) -> Tensor:
    """bool, T N: the choice with exactly `target` tokens.

    If there are too many, the kept ones with the highest `total` (T N) go, wherever they are; if there are too few, the
    dropped ones with the lowest come back.
    """
    flat, scores = kept.flatten().clone(), total.flatten()
    surplus = int(flat.sum()) - target
    if surplus > 0:
        flat[ranks(scores.masked_fill(~flat, -torch.inf)) < surplus] = False
    elif surplus < 0:
        free = mask.flatten() & ~flat
        flat[ranks((-scores).masked_fill(~free, -torch.inf)) < -surplus] = True
    return flat.view_as(kept)
