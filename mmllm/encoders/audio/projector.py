"""A few audio tokens a frame: means over its features, then one linear map.

B videos, T frames, A audio features of a frame, E their width, K tokens, D LLM width
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from mmllm.errors import ConfigError
from mmllm.fields import require
from mmllm.interfaces import AudioProjector
from mmllm.modeling.hearing import pooled
from mmllm.registry import register


@dataclass(frozen=True, kw_only=True)
class LinearAudioConfig:
    """How many tokens."""

    tokens: int = 1
    """Audio tokens after each frame; with a frame a second, so many a second."""

    def __post_init__(self) -> None:
        require(1 <= self.tokens <= 1000, self, "tokens", "from 1 to 1000")


@register("audio_projector", "linear", config=LinearAudioConfig)
class LinearAudioProjector(AudioProjector):
    """Means over the audio features of a frame, each projected by one linear map."""

    def __init__(self, config: LinearAudioConfig, *, audio_width: int | None, out_width: int) -> None:
        super().__init__()
        if audio_width is None:
            raise ConfigError("audio_projector needs an audio_encoder, whose features it projects")
        self.config = config
        self.linear = nn.Linear(audio_width, out_width)

    def forward(self, audio: Tensor) -> Tensor:
        """B T A E to B T K D."""
        return self.linear(pooled_frames(audio, self.config.tokens))

    @property
    def tokens_per_frame(self) -> int:
        """K."""
        return self.config.tokens


def pooled_frames(audio: Tensor, tokens: int) -> Tensor:
    """Features B T A E averaged to B T K E."""
    return pooled(audio.flatten(0, 1), tokens).unflatten(0, audio.shape[:2])
