"""Where a video is cut into runs of like frames.

T frames, N tokens of a frame, D width
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def runs_of_like_frames(features: Tensor, *, threshold: float, least: int) -> list[int]:
    """The numbers of frames of the segments of a video T N D.

    Args:
        features: float.
        threshold: frames whose means have a cosine below this begin a new segment.
        least: the least alike neighbours are cut, too, until there are so many segments.
    """
    frames = len(features)
    if frames < 2:
        return [frames] if frames else []
    means = normalize(features.mean(1, dtype=torch.float32), dim=-1)
    similarity = (means[:-1] * means[1:]).sum(-1)
    cut = similarity < threshold
    missing = min(least, frames) - int(cut.sum()) - 1
    if missing > 0:
        cut[similarity.masked_fill(cut, torch.inf).argsort(stable=True)[:missing]] = True
    ends = [*(cut.nonzero()[:, 0] + 1).tolist(), frames]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]
