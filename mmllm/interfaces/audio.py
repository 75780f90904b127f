"""Encoders of sound, and what brings their features to the LLM.

F windows run at once, S samples of sound, n features of a window, E their width, A audio tokens of a second,
B videos, T frames, K tokens of a frame, D LLM width
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mmllm.interfaces.part import Part


class AudioEncoder(Part, nn.Module):
    """Sound to features. Sets `width` and `tokens_per_s` when it is built."""

    width: int
    """E, of the features."""
    tokens_per_s: int
    """A: about so many tokens are a second; a second that has fewer or more is pooled to this number."""
    window_s: int = 10
    """Whole seconds that are run at once."""
    load_pretrained: Any = None
    """Method `(source)` that loads published weights; None if there are none."""

    def forward(self, waveform: Tensor) -> Tensor:
        """Features F n E, in order of time, of windows of sound.

        Args:
            waveform: float32, F S. Mono at `mmllm.tokens.SAMPLE_RATE`, from -1 to 1; at least a second, and at most
                `window_s`.
        """
        raise NotImplementedError


class AudioProjector(Part, nn.Module):
    """Audio features to the tokens that the LLM reads after each frame, for paths that do not read sound."""

    def forward(self, audio: Tensor) -> Tensor:
        """B T A E to B T K D."""
        raise NotImplementedError

    @property
    def tokens_per_frame(self) -> int:
        """K."""
        raise NotImplementedError
