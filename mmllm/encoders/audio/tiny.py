"""A small audio encoder that is trained on rendered sounds: mel bands, two convolutions, ten tokens a second.

F windows, S samples, N mel frames, M mel bands, n tokens, E width
"""

from __future__ import annotations

from dataclasses import dataclass

from einops import rearrange
from torch import Tensor, nn

from mmllm.fields import require
from mmllm.interfaces import AudioEncoder
from mmllm.preprocessing.fbank import SHIFT, fbank
from mmllm.registry import register
from mmllm.tokens import SAMPLE_RATE

_MEAN, _SPREAD = 10.0, 10.0
"""Roughly those of the mel energies of rendered sounds; silence is near -16."""


@dataclass(frozen=True, kw_only=True)
class TinyAudioConfig:
    """Sizes."""

    width: int = 64
    bands: int = 48
    """Mel bands."""

    def __post_init__(self) -> None:
        require(1 <= self.width <= 4096, self, "width", "from 1 to 4096")
        require(8 <= self.bands <= 128, self, "bands", "from 8 to 128")


@register("audio_encoder", "tiny", config=TinyAudioConfig)
class TinyAudioEncoder(AudioEncoder):
    """Two convolutions over mel bands, for rendered sounds."""

    tokens_per_s = 10

    def __init__(self, config: TinyAudioConfig) -> None:
        super().__init__()
        self.config, self.width = config, config.width
        self.near = nn.Sequential(nn.Conv1d(config.bands, config.width, kernel_size=5, stride=5), nn.GELU())
        self.wide = nn.Sequential(nn.Conv1d(config.width, config.width, kernel_size=6, stride=2, padding=2), nn.GELU())
        self.norm = nn.LayerNorm(config.width)

    def forward(self, waveform: Tensor) -> Tensor:
        """Features F n E of sound F S: ten a second."""
        frames = SHIFT * 10 * max(1, waveform.shape[1] // (SAMPLE_RATE // self.tokens_per_s))
        missing = frames - SHIFT + 400 - waveform.shape[1]  # the last mel frame ends behind the sound
        mel = fbank(nn.functional.pad(waveform, (0, max(0, missing))), self.config.bands)
        mel = (mel[:, : frames // SHIFT] - _MEAN) / _SPREAD
        bands = rearrange(mel, "f n m -> f m n").to(self.norm.weight.dtype)
        return self.norm(rearrange(self.wide(self.near(bands)), "f e n -> f n e"))
