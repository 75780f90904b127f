"""Sizes of FlexTok's halves. The defaults are those of the smallest published model (d12-d12)."""

from __future__ import annotations

from dataclasses import dataclass

from mmllm.fields import require


@dataclass(frozen=True, kw_only=True)
class FlexTokHalfConfig:
    """What both halves have in common."""

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
        for field in ("channels", "patch_size", "registers", "layers", "width", "head_width", "code_width"):
            require(getattr(self, field) > 0, self, field, "positive")
        require(self.width % 4 == 0, self, "width", "a multiple of 4, for the positions")
        require(self.width % self.head_width == 0, self, "head_width", f"a divisor of width = {self.width}")
        require(len(self.grid) == 2 and min(self.grid) > 0, self, "grid", "two positive numbers")


@dataclass(frozen=True, kw_only=True)
class FlexTokEncoderConfig(FlexTokHalfConfig):
    """From latents to one code for each register."""


@dataclass(frozen=True, kw_only=True)
class FlexTokDecoderConfig(FlexTokHalfConfig):
    """From the first codes of a picture, noised latents and a time to a velocity."""

    frequencies: int = 256
    """Sines and cosines in which the time is written."""
    max_time: float = 1000.0
    """The time, 0 to 1, is multiplied by 1000 / max_time before its sines are taken."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.frequencies > 0 and self.frequencies % 2 == 0, self, "frequencies", "positive and even")
        require(self.max_time > 0, self, "max_time", "positive")
