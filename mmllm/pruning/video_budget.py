"""A budget for a whole video; frames that show more that is new get more of it. Our own; no paper.

    change of a patch = 1 - cosine(patch, the same patch one frame before)
    a frame's share   = in proportion to its mean change;   inside a frame: the highest score

As in a video codec, a still scene costs almost nothing after its first frame, and a cut costs a whole frame.

B videos, T frames, N tokens of a frame, D width, K kept
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from mmllm.errors import InputError
from mmllm.fields import require
from mmllm.interfaces import Grid, Origin, TokenReducer
from mmllm.pruning.budget import Budget, apportion
from mmllm.pruning.needs import score_of
from mmllm.pruning.selection import top_counted
from mmllm.registry import register
from mmllm.tokens import VisualTokens


@dataclass(frozen=True, kw_only=True)
class VideoBudgetConfig(Budget):
    """A budget; also `keep` and `ratio` are spent over the whole video."""

    score: Literal["change", "cls_attention", "mean_attention", "probe_attention"] = "change"
    """Score by which the tokens of a frame are ranked. `change` needs no score of the encoder."""
    least: int = 1
    """Tokens that every frame keeps at least, so that no frame disappears from the video."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.least >= 0, self, "least", "zero or more tokens")


@register("reducer", "video_budget", config=VideoBudgetConfig)
class VideoBudgetReducer(TokenReducer):
    """Ours: one budget for the whole video; frames that show more that is new get more of it."""

    origin = Origin(
        original="ours",
        compared_with="properties",
        equal="a cut gets the budget, and every frame its least",
    )
    layout = "grid"
    compares_frames = True

    def __init__(self, config: VideoBudgetConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def scores_needed(self) -> tuple[str, ...]:
        """No score, unless tokens are ranked by the encoder's attention."""
        return () if self.config.score == "change" else (self.config.score,)

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """B T K of B T N tokens; every frame keeps its own number.

        Raises:
            InputError: for 1D tokens, tiled images, or a budget below `least` tokens for each frame.
        """
        if tokens.tiling is not None:
            raise InputError("video_budget compares frames in time; for tiled images use hired")
        change = change_of(tokens)  # B T N
        counts = np.zeros(tokens.shape[:2], dtype=np.int64)
        for video in range(len(counts)):
            present = tokens.mask[video].sum(-1).cpu().numpy()
            mean_change = change[video].sum(-1).cpu().double().numpy() / np.maximum(present, 1)
            total = self.config.for_video(present)
            counts[video] = apportion(mean_change, total, least=self.config.least, most=present)
        score = change if self.config.score == "change" else self.ranking(tokens)
        kept, mask = top_counted(score, torch.from_numpy(counts).to(change.device), tokens.mask)
        return tokens.take(kept, mask)

    def ranking(self, tokens: VisualTokens) -> Tensor:
        """float32, B T N: the score by which the tokens of a frame are ranked."""
        if self.config.score == "change":
            return change_of(tokens)
        return score_of(tokens, self.config.score, "video_budget").float()

    def kept_tokens(self, tokens_per_frame: int, frames: int) -> int:
        """The most tokens that remain of a whole video."""
        return self.config.for_video(np.full(frames, tokens_per_frame))

    def counts_by_shape(self, tokens_per_frame: int, frames: int, grid: Grid) -> int:
        """`kept_tokens`, which is exact; what changes shares it among the frames."""
        return self.kept_tokens(tokens_per_frame, frames)


def change_of(tokens: VisualTokens) -> Tensor:
    """float32, B T N: change of each patch since the frame before, 0 to 2; 0 at masked tokens.

    A patch that has no patch in its place one frame before is compared with the mean of its own frame. So is every
    patch of the first frame.

    Raises:
        InputError: for 1D tokens, which have no place.
    """
    if tokens.grid is None:
        raise InputError("video_budget needs tokens with a place on a patch grid, and 1D tokens have none")
    patches, present = tokens.on_grid()
    patches = rearrange(patches.detach().float(), "b t h w d -> b t (h w) d")
    present = rearrange(present, "b t h w -> b t (h w)")
    mean = (patches * present.unsqueeze(-1)).sum(2, keepdim=True) / present.sum(2).clamp(min=1)[..., None, None]
    reference = mean.expand_as(patches)
    previous = torch.cat([patches[:, :1], patches[:, :-1]], dim=1)
    previous_present = torch.cat([torch.zeros_like(present[:, :1]), present[:, :-1]], dim=1)
    reference = torch.where(previous_present.unsqueeze(-1), previous, reference)
    change = (1 - torch.cosine_similarity(patches, reference, dim=-1)).clamp(min=0)  # B T HW
    return change.gather(-1, tokens.index.clamp(min=0)).masked_fill(~tokens.mask, 0.0)
