"""Adapts visual tokens to the LLM's word embeddings. By default they stay as they are, as in LITA.

Two changes help a small LLM that is trained from scratch to learn much faster. Visual tokens get the size of word
embeddings. And the token of a frame gets the embedding of the frame's time token, which the LLM only has to copy.

B videos, L tokens of the sequence, D LLM width, K time tokens
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from mmllm.fields import require
from mmllm.tokens import VisualSequence


@dataclass(frozen=True, kw_only=True)
class BlendConfig:
    """Two changes to visual tokens that LITA does not have. Both are off unless a recipe turns them on."""

    rms: float = 0.0
    """Every visual token is scaled to this root mean square; 0 changes nothing."""
    time_anchor: float = 0.0
    """Factor of the embedding that is added to a token of one frame: that of the time token of the frame's instant."""

    def __post_init__(self) -> None:
        require(self.rms >= 0, self, "rms", "zero or more")
        require(self.time_anchor >= 0, self, "time_anchor", "zero or more")


def blend(sequence: VisualSequence, config: BlendConfig, anchors: Tensor | None = None) -> VisualSequence:
    """The sequence with its embeddings scaled, and anchored in time, as `config` says.

    Args:
        sequence: output of the path, B L D. With as many frames as time tokens, frame i belongs to time token i.
        config: the changes.
        anchors: K D. Embeddings of the time tokens; without them nothing is anchored.
    """
    beside, mask, frame = (
        sequence.cross_attention_states,
        sequence.cross_attention_mask,
        sequence.cross_attention_frame,
    )
    if beside is not None and mask is not None:
        frame = torch.full_like(mask, -1, dtype=torch.long) if frame is None else frame
        beside = _blended(beside, frame, mask, config, anchors)
    return dataclasses.replace(
        sequence,
        embeddings=_blended(sequence.embeddings, sequence.frame, sequence.mask, config, anchors),
        cross_attention_states=beside,
    )


def _blended(embeddings: Tensor, frame: Tensor, mask: Tensor, config: BlendConfig, anchors: Tensor | None) -> Tensor:
    """Embeddings B L D, scaled and anchored, of tokens that show the frames B L; `mask` (bool) is False at padding."""
    if config.rms:
        size = embeddings.square().mean(dim=-1, keepdim=True).sqrt()
        embeddings = embeddings * (config.rms / size.clamp(min=1e-6))
    if config.time_anchor and anchors is not None:
        frame = frame.where(mask, frame.new_tensor(-1))
        last = frame.amax(dim=1, keepdim=True).clamp(min=1)
        nearest = (frame.clamp(min=0) / last * (len(anchors) - 1)).round().long()  # B L
        anchor = anchors.to(nearest.device)[nearest] * (frame >= 0).unsqueeze(-1)
        embeddings = embeddings + config.time_anchor * anchor
    return embeddings
