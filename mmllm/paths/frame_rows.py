"""The tokens of single frames in reading order, each row of patches ended by a learned vector.

    3x3 patches, the right column masked    a b n d e n g h n

T frames, P frames that are read, N tokens of a frame, H W patch grid, L tokens with row ends, D width
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from mmllm.tokens import PATCHLESS, VisualTokens


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameRows:
    """Frames of one video."""

    features: Tensor
    """P L D. Zero where masked."""
    mask: Tensor
    """bool, P L. False where a frame has no token; all True if frames have the same ones."""
    place: Tensor
    """int64, P L. Raster position of each patch; negative for row ends and 1D tokens."""

    def of(self, frame: int) -> Tensor:
        """The tokens of one frame, without gaps: L D or fewer."""
        return self.features[frame][self.mask[frame]]

    def places(self, frame: int) -> Tensor:
        """int64. The place of each of these tokens."""
        return self.place[frame][self.mask[frame]]


def frame_rows(tokens: VisualTokens, video: int, frames: Sequence[int], newline: Tensor | None) -> FrameRows:
    """Chosen frames of one video.

    Args:
        tokens: features B T N D.
        video: number of the video.
        frames: numbers of the P frames.
        newline: D. Ends each row that still has a patch; None for no row ends. 1D tokens have no rows.
    """
    chosen = list(frames)
    one = VisualTokens(
        features=tokens.features[video, chosen].unsqueeze(0),
        grid=tokens.grid,
        index=tokens.index[video, chosen].unsqueeze(0),
        mask=tokens.mask[video, chosen].unsqueeze(0),
    )
    if tokens.grid is None or newline is None:
        features, mask = one.features[0] * one.mask[0].unsqueeze(-1), one.mask[0]
        place = one.index[0] if tokens.grid is not None else torch.full_like(one.index[0], PATCHLESS)
    else:
        features, mask, place = _with_row_ends(one, newline)
    used = mask.any(0)
    return FrameRows(features=features[:, used], mask=mask[:, used], place=place[:, used])


def _with_row_ends(tokens: VisualTokens, newline: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """P H*(W+1) D, and its mask and places."""
    features, present = (value[0] for value in tokens.on_grid())  # P H W D, P H W
    p, h, w, d = features.shape
    ends = present.any(-1, keepdim=True)  # P H 1
    place = torch.arange(h * w, device=present.device).view(1, h, w).expand(p, h, w)
    rows = torch.cat([features, newline.to(features.dtype).expand(p, h, 1, d)], dim=2)
    return (
        rearrange(rows, "p h w d -> p (h w) d"),
        rearrange(torch.cat([present, ends], dim=2), "p h w -> p (h w)"),
        rearrange(torch.cat([place, torch.full_like(place[..., :1], PATCHLESS)], dim=2), "p h w -> p (h w)"),
    )
