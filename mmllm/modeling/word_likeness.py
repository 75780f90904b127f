"""How much the tokens of a frame resemble words: each by its cosine, the frame by a soft maximum over its tokens.

A thing fills a part of a frame. In the mean of all tokens it is one of many things; the token of its place resembles
its name most.

N tokens of a frame, W directions, D LLM width
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional

SHARPNESS = 20.0
"""Factor of cosines in the soft maximum: those that are 0.05 below the highest weigh e times less."""


def word_likeness(tokens: Tensor, directions: Tensor, mask: Tensor | None = None) -> Tensor:
    """float32, ... W, from -1 to 1: equal cosines give that cosine.

    Args:
        tokens: ... N D.
        directions: float32, W D, of length 1.
        mask: bool, ... N, with a token in each frame; None if all tokens count.
    """
    cosines = functional.normalize(tokens.float(), dim=-1) @ directions.mT  # ... N W
    if mask is None:
        return (SHARPNESS * cosines).logsumexp(-2) / SHARPNESS - math.log(cosines.shape[-2]) / SHARPNESS
    weighed = (SHARPNESS * cosines).masked_fill(~mask.unsqueeze(-1), -math.inf)
    return (weighed.logsumexp(-2) - mask.sum(-1, keepdim=True).log()) / SHARPNESS
