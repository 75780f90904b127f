"""TDC's compressor: each later frame of a window as a few tokens, by queries that are pooled from the first frame.

    first frame   L tokens ── averages of K runs ── K queries ─┐
    later frame   L tokens (and those of its sound) ───────────┼─ Q-Former ── K tokens of length 1
    question      ids ─────────────────────────────────────────┘

F frames, K queries, L tokens of a frame, S tokens of a frame with its sound, Q ids of the question, D LLM width,
C width of the Q-Former
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mmllm.errors import InputError
from mmllm.paths.qformer import QFormer, QFormerSizes

_CHUNK = 64
"""Frames that are compressed at once; bounds the memory."""


class Compressor(nn.Module):
    """Frames of D-wide tokens to K tokens each.

    Args:
        sizes: of the Q-Former.
        width: D.
        tokens: K.
        queries: where queries come from: "pooled" from a frame, or "learned".
    """

    def __init__(
        self, sizes: QFormerSizes, *, width: int, tokens: int, queries: Literal["pooled", "learned"] = "pooled"
    ) -> None:
        super().__init__()
        self.tokens, self.queries = tokens, queries
        self.bert = QFormer(sizes, width)
        # the published files have both
        self.query_tokens = nn.Parameter(torch.randn(1, tokens, sizes.width) * 0.02)
        self.query_proj = nn.Linear(width, sizes.width)
        self.vision_proj = nn.Linear(sizes.width, width)
        if queries == "pooled":
            self.query_tokens.requires_grad_(False)
        else:
            self.query_proj.requires_grad_(False)

    def queries_of(self, frame: Tensor) -> Tensor:
        """K C: the queries for a window whose first frame has these visual tokens (L D).

        Raises:
            InputError: if the frame has fewer tokens than there are queries.
        """
        if len(frame) < self.tokens:
            raise InputError(
                f"a frame of {len(frame)} tokens cannot be pooled to {self.tokens} queries: lower `tokens`"
            )
        if self.queries == "learned":
            return self.query_tokens[0]
        pooled = nn.functional.adaptive_avg_pool1d(frame.T.unsqueeze(0), self.tokens)  # 1 D K
        return self.query_proj(pooled[0].T)

    def forward(
        self, queries: Tensor, frames: Tensor, mask: Tensor | None = None, text: Tensor | None = None
    ) -> Tensor:
        """F K D: tokens of unit length.

        Args:
            queries: F K C.
            frames: F S D. Tokens of each frame, those of its sound behind the visual ones.
            mask: bool, F S. False at padding.
            text: int64, Q. Ids of the question.
        """
        read = [
            self.bert(queries[start : start + _CHUNK], frames[start : start + _CHUNK], part, text)
            for start in range(0, len(frames), _CHUNK)
            for part in [None if mask is None else mask[start : start + _CHUNK]]
        ]
        return nn.functional.normalize(self.vision_proj(torch.cat(read)), dim=-1)
