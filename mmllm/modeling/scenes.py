"""How alike the frames of a video are, frame by frame: what a path needs to cut the video into scenes.

B videos, T frames, N tokens of a frame, C width, F features of a frame
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmllm.errors import InputError
from mmllm.tokens import VisualTokens

_PAIRS = 16
"""Pairs of frames that are compared at once; bounds the memory in float32."""


def frame_similarity(tokens: VisualTokens, channels: slice = slice(None)) -> Tensor:
    """float32, B T: cosine similarity of each frame to the next one that is not masked; 0 at the last and masked ones.

    A frame is one vector of all its tokens. If tokens are missing or merged, so that places differ from frame to frame,
    it is the mean of its tokens.

    Args:
        tokens: features B T N C.
        channels: those of C that are compared.

    Raises:
        InputError: if a feature is not finite.
    """
    frames, valid = tokens.features[..., channels], tokens.frame_mask
    similarity = torch.zeros(valid.shape, dtype=torch.float32, device=frames.device)
    aligned = tokens.size is None and bool((tokens.mask.all(-1) | ~valid).all()) and _same_places(tokens.index, valid)
    for b in range(len(frames)):
        present = valid[b].nonzero().squeeze(1)
        if aligned:
            similarity[b, present[:-1]] = neighbours(frames[b], present)
        else:
            weight = tokens.mask[b].unsqueeze(-1).float()
            means = (frames[b].float() * weight).sum(1) / weight.sum(1).clamp(min=1)
            similarity[b, present[:-1]] = neighbours(means.unsqueeze(1), present)
    return similarity


def neighbours(frames: Tensor, present: Tensor) -> Tensor:
    """float32, P-1: cosine similarities of neighbours among the frames numbered `present` (int64, P) of T N C.

    Raises:
        InputError: if a feature is not finite.
    """
    similarities = []
    for start in range(0, len(present), _PAIRS):
        chunk = frames[present[start : start + _PAIRS + 1]].flatten(1).float()  # P F; the last is the next one's first
        if not bool(chunk.isfinite().all()):
            raise InputError("frames cannot be compared: some of their features are infinite or NaN")
        similarities.append(nn.functional.cosine_similarity(chunk[:-1], chunk[1:], dim=1))
    return torch.cat(similarities) if similarities else frames.new_zeros(0, dtype=torch.float32)


def _same_places(index: Tensor, valid: Tensor) -> bool:
    """Whether the tokens (int64, B T N) of all frames that are not masked lie at the same places."""
    return all(bool((row[present] == row[present][:1]).all()) for row, present in zip(index, valid, strict=True))
