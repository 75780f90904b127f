"""Paths: the sequence that the LLM reads of a video.

B videos, T frames, N tokens of a frame or of the sequence, D LLM width, E width of audio features
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from mmllm.interfaces.encoder import Grid
from mmllm.interfaces.part import Part
from mmllm.tokens import VisualSequence, VisualTokens


class VideoPath(Part, nn.Module):
    """Arranges the tokens of all frames into the sequence that the LLM reads."""

    averages: ClassVar[bool] = False
    """Whether each token of the sequence is an average of tokens. An affine projector can then come after it."""
    reads_audio: bool = False
    """Whether it reads `VisualTokens.audio` itself. No audio projector then puts tokens between the frames. Its
    constructor may take `audio_width`: E, or None without an audio encoder."""
    gives_states: ClassVar[bool] = False
    """Whether its sequences have `cross_attention_states`, for stages inside the LLM that read them."""
    needs_similarity: ClassVar[bool] = False
    """Whether it reads `VisualTokens.similarity`."""
    counts_text: ClassVar[bool] = False
    """Whether it reads `VisualTokens.text_tokens`, because its sequence leaves room for the text."""

    def frames_read(self, frame_mask: Tensor, text_tokens: Tensor | None = None) -> Tensor:
        """bool, B T. Which of the frames of `frame_mask` it reads, out of which the others need not be encoded.

        Args:
            frame_mask: bool, B T. False at padding.
            text_tokens: int64, B; see `VisualTokens`.
        """
        return frame_mask

    def forward(self, tokens: VisualTokens) -> VisualSequence:
        """Features B T N D in reading order."""
        raise NotImplementedError

    def token_counts(self, frames: int, grid: Grid, tokens_per_frame: int) -> dict[str, int]:
        """Tokens of each block, by name, for a video of `frames` frames.

        Raises:
            InputError: if it needs a patch grid and there is none.
        """
        raise NotImplementedError

    def beside_counts(self, frames: int, grid: Grid, tokens_per_frame: int) -> dict[str, int]:
        """Tokens beside the sequence, by name, for the same video."""
        return {}
