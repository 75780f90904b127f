"""What each position of a prompt is: policies of the cache may keep all positions of some kinds.

B rows, P positions
"""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor


class PositionKind(IntEnum):
    """What a position holds."""

    SYSTEM = 0
    """Text in front of the first visual token: the system prompt, and how the user's turn begins."""
    TIME = 1
    """Text that says when a frame is shown."""
    VISUAL = 2
    """A token of a video or an image, with its sound."""
    TEXT = 3
    """Other text: between two videos, or all of a prompt without any."""
    QUESTION = 4
    """Text behind the last visual token, and whatever is read after the prompt and before an answer."""
    ANSWER = 5
    """What the model has written."""


def kinds_of(medium: Tensor, between: Tensor, prompt: Tensor) -> Tensor:
    """int64, B P: the kind of each position.

    Args:
        medium: bool, B P. Tokens of videos and images.
        between: bool, B P. Text that says when frames are shown.
        prompt: bool, B P. False at padding and at answers.
    """
    inside = medium | between
    begun = inside.cumsum(1) > 0
    open_still = inside.flip(1).cumsum(1).flip(1) > 0
    kind = torch.full_like(medium, PositionKind.TEXT, dtype=torch.long)
    has_medium = inside.any(1, keepdim=True)
    kind = kind.masked_fill(has_medium & ~begun, PositionKind.SYSTEM)
    kind = kind.masked_fill(has_medium & ~open_still, PositionKind.QUESTION)
    kind = kind.masked_fill(between, PositionKind.TIME).masked_fill(medium, PositionKind.VISUAL)
    return kind.masked_fill(~prompt, PositionKind.ANSWER)
