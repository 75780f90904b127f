"""Sizes of FlexTok's halves. The defaults are those of the smallest published model (d12-d12)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mmllm.fields import require


@dataclass(frozen=True, kw_only=True)
class FlexTokEncoderConfig:
    """From latents to one code for each register."""

    channels: int = 16
    """Channels of the latents."""
    patch_size: int = 2
    """Side of a patch, in pixels of the latents."""
    grid: tuple[int, int] = (16, 16)
    """Most rows and columns of patches."""
    registers: int = 256
    """Most tokens of a picture."""
    layers: int = 12
    width: int = 768
    head_width: int = 64
    code_width: int = 6
    """Channels of a code."""

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True, kw_only=True)
class FlexTokDecoderConfig:
    """From the first codes of a picture, noised latents and a time to a velocity."""

    channels: int = 16
    """Channels of the latents."""
    patch_size: int = 2
    """Side of a patch, in pixels of the latents."""
    grid: tuple[int, int] = (16, 16)
    """Most rows and columns of patches."""
    registers: int = 256
    """Most tokens of a picture."""
    layers: int = 12
    width: int = 768
    head_width: int = 64
    code_width: int = 6
    """Channels of a code."""
    frequencies: int = 256
    """Sines and cosines in which the time is written."""
    max_time: float = 1000.0
    """The time, 0 to 1, is multiplied by 1000 / max_time before its sines are taken."""

    def __post_init__(self) -> None:
        _check(self)
        require(self.frequencies > 0 and self.frequencies % 2 == 0, self, "frequencies", "positive and even")
        require(self.max_time > 0, self, "max_time", "positive")


def _check(config: Any) -> None:
    for field in ("channels", "patch_size", "registers", "layers", "width", "head_width", "code_width"):
        require(getattr(config, field) > 0, config, field, "positive")
    require(config.width % 4 == 0, config, "width", "a multiple of 4, for the positions")
    require(config.width % config.head_width == 0, config, "head_width", f"a divisor of width = {config.width}")
    require(len(config.grid) == 2 and min(config.grid) > 0, config, "grid", "two positive numbers")
