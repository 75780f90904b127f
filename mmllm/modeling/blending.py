"""How visual tokens meet the LLM's word embeddings. Nothing is done by default, as in LITA.

A small LLM that is trained from scratch learns much faster if visual tokens are of the size of word embeddings, and if
a token of one frame carries the time token of that frame's instant, which it then only has to copy.

B videos, L tokens of the sequence, D LLM width, K time tokens
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from torch import Tensor

from mmllm.fields import require
from mmllm.tokens import VisualSequence


@dataclass(frozen=True, kw_only=True)
class BlendConfig:
    """Departures from LITA, off unless a recipe turns them on."""

    rms: float = 0.0
    """Every visual token is scaled to this root mean square; 0 leaves it as the projector made it."""
    time_anchor: float = 0.0
    """How much of the embedding of its instant's time token is added to a token that shows one frame."""

    def __post_init__(self) -> None:
        require(self.rms >= 0, self, "rms", "zero or more")
        require(self.time_anchor >= 0, self, "time_anchor", "zero or more")


def blend(sequence: VisualSequence, config: BlendConfig, words: Tensor, time_ids: Tensor | None) -> VisualSequence:
    """The sequence with its embeddings scaled and anchored in time as `config` says.

    Args:
        sequence: what the path made, B L D. Frame i and time token i name the same instant where there are as many.
        config: what to do.
        words: the LLM's table of embeddings.
        time_ids: int64, K. Ids of the time tokens; without any there is no anchor.
    """
    embeddings = sequence.embeddings
    if config.rms:
        size = embeddings.square().mean(dim=-1, keepdim=True).sqrt()
        embeddings = embeddings * (config.rms / size.clamp(min=1e-6))
    if config.time_anchor and time_ids is not None:
        frame = sequence.frame.where(sequence.mask, sequence.frame.new_tensor(-1))
        last = frame.amax(dim=1, keepdim=True).clamp(min=1)
        nearest = (frame.clamp(min=0) / last * (len(time_ids) - 1)).round().long()  # B L
        anchor = words[time_ids[nearest]] * (frame >= 0).unsqueeze(-1)
        embeddings = embeddings + config.time_anchor * anchor
    return dataclasses.replace(sequence, embeddings=embeddings)
