"""A budget over a whole video, shared by how much each frame shows that is new. Our own; no paper.

    change of a patch = 1 - cosine(patch, the same patch one frame before)
    a frame's part    = its mean change;   inside a frame: the highest score

Like a video codec: a still scene costs next to nothing after its first frame, a cut costs a whole frame.

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
from mmllm.interfaces import TokenReducer
from mmllm.pruning.budget import Budget, apportion
from mmllm.pruning.needs import score_of
from mmllm.pruning.selection import top_counted
from mmllm.registry import register
from mmllm.tokens import VisualTokens


@dataclass(frozen=True, kw_only=True)
class VideoBudgetConfig(Budget):
    """A budget, which is spent over the whole video however it is given."""

    score: Literal["change", "cls_attention", "mean_attention", "probe_attention"] = "change"
    """What tokens of one frame are ranked by. `change` needs nothing of the encoder."""
    least: int = 1
    """Tokens that every frame keeps, so that none disappears from the time line."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.least >= 0, self, "least", "zero or more tokens")


@register("reducer", "video_budget", config=VideoBudgetConfig)
class VideoBudgetReducer(TokenReducer):
    """Ours: one budget for the whole video, shared by how much each frame shows that is new."""

    def __init__(self, config: VideoBudgetConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def scores_needed(self) -> tuple[str, ...]:
        """Nothing of the encoder, unless tokens are to be ranked by its attention."""
        return () if self.config.score == "change" else (self.config.score,)

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """B T K of B T N tokens, with a number for each frame of its own.

        Raises:
            InputError: for 1D tokens, tiled images, or a budget below `least` tokens for each frame.
        """
        if tokens.tiling is not None:
            raise InputError("video_budget compares frames in time; for tiled images use hired")
        change = change_of(tokens)  # B T N
        counts = np.zeros(tokens.shape[:2], dtype=np.int64)
        for video in range(len(counts)):
            there = tokens.mask[video].sum(-1).cpu().numpy()
            shown = change[video].sum(-1).cpu().double().numpy() / np.maximum(there, 1)
            total = self.config.for_video(there)
            counts[video] = apportion(shown, total, least=self.config.least, most=there)
        score = change if self.config.score == "change" else self.ranking(tokens)
        kept, mask = top_counted(score, torch.from_numpy(counts).to(change.device), tokens.mask)
        return tokens.take(kept, mask)

    def ranking(self, tokens: VisualTokens) -> Tensor:
        """float32, B T N: what tokens of one frame are ranked by."""
        if self.config.score == "change":
            return change_of(tokens)
        return score_of(tokens, self.config.score, "video_budget").float()

    def kept_tokens(self, tokens_per_frame: int, frames: int) -> int:
        """The most tokens that remain of a whole video."""
        return self.config.for_video(np.full(frames, tokens_per_frame))


def change_of(tokens: VisualTokens) -> Tensor:
    """float32, B T N: what each patch shows that its place did not show one frame before; 0 at masked tokens.

    A place that the frame before lacks, and every place of the first frame, is compared with its own frame's mean.

    Raises:
        InputError: for 1D tokens, which have no place.
    """
    if tokens.grid is None:
        raise InputError("video_budget compares the same patch in two frames; 1D tokens have no place to compare")
    patches, present = tokens.on_grid()
    patches = rearrange(patches.detach().float(), "b t h w d -> b t (h w) d")
    present = rearrange(present, "b t h w -> b t (h w)")
    mean = (patches * present.unsqueeze(-1)).sum(2, keepdim=True) / present.sum(2).clamp(min=1)[..., None, None]
    reference = mean.expand_as(patches)
    before = torch.cat([patches[:, :1], patches[:, :-1]], dim=1)
    known = torch.cat([torch.zeros_like(present[:, :1]), present[:, :-1]], dim=1)
    reference = torch.where(known.unsqueeze(-1), before, reference)
    change = (1 - torch.cosine_similarity(patches, reference, dim=-1)).clamp(min=0)  # B T HW
    return change.gather(-1, tokens.index.clamp(min=0)).masked_fill(~tokens.mask, 0.0)
