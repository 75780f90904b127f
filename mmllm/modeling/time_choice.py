"""How an answer chooses among time tokens: each against all other words, all of them together, or none.

A model that is not sure of the instant spreads its probability over neighbouring time tokens; one trained with soft
targets always does. Any single other word, such as the first of "It does not happen.", then wins with less than all of
them have.

B rows, times the beams of each; R barred ones of them; V vocabulary, K time tokens
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from transformers import LogitsProcessor

TimeChoice = Literal["each", "together"]


class TimeTokensTogether(LogitsProcessor):
    """The best time token stands for all: it gets the probability that they have together, before normalisation."""

    def __init__(self, time_ids: Sequence[int]) -> None:
        self.time_ids = list(time_ids)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores B V, in which those of time tokens are higher by one number a row; their order stays."""
        ids = torch.tensor(self.time_ids, device=scores.device)
        times = scores[:, ids].float()  # B K
        best = times.amax(dim=-1, keepdim=True)
        more = times.logsumexp(dim=-1, keepdim=True) - best
        more = more.where(best.isfinite(), 0.0)  # all of them may be barred
        return scores.index_add(1, ids, more.to(scores.dtype).expand(-1, len(ids)))


class TimeTokensBarred(LogitsProcessor):
    """No time tokens in rows without a video: there is nothing that they are times of.

    Args:
        time_ids: K.
        barred: whether a row has none, for each row.
    """

    def __init__(self, time_ids: Sequence[int], barred: Sequence[bool]) -> None:
        self.time_ids, self.barred = list(time_ids), list(barred)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores B V, in which time tokens of barred rows cannot be chosen."""
        beams = len(scores) // len(self.barred)
        rows = torch.tensor(self.barred, device=scores.device).repeat_interleave(beams).nonzero()  # R 1
        ids = torch.tensor(self.time_ids, device=scores.device)
        return scores.index_put((rows, ids), scores.new_tensor(-math.inf))
