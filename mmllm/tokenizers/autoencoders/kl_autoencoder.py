"""The two halves of diffusers' AutoencoderKL, the VAE of latent diffusion models; needs the extra `diffusers`.

B images, K channels of a latent, Y X rows and columns of pixels, y x rows and columns of latents
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmllm.errors import ConfigError, require_extra
from mmllm.fields import closest

BLOCKS = (128, 256, 512, 512)
"""Channels at each size in the VAEs of FlexTok and of Stable Diffusion."""
_SCALE = 0.18215
"""Diffusers' own scaling_factor where a configuration has none."""


class KlSettings:
    """The settings of an AutoencoderKL as its `config.json` has them, completed, and what follows from them."""

    def __init__(self, given: Mapping[str, Any], *, channels: int) -> None:
        """Takes any settings of AutoencoderKL; FlexTok's sizes where they are not given.

        Raises:
            ConfigError: if a setting has no sense.
        """
        values = {name: value for name, value in given.items() if not name.startswith("_") and value is not None}
        blocks = values.setdefault("block_out_channels", list(BLOCKS))
        if not (isinstance(blocks, (list, tuple)) and blocks and all(type(width) is int for width in blocks)):
            raise ConfigError(f"block_out_channels must be a list of whole numbers, not {blocks!r:.80}")
        if given.get("_class_name", "AutoencoderKL") != "AutoencoderKL":
            raise ConfigError(f"a VAE must be an AutoencoderKL, not {given['_class_name']!r:.80}")
        for name in ("latents_mean", "latents_std"):
            if name in values:
                raise ConfigError(f"{name}: latents that are scaled channel by channel are not supported")
        values.setdefault("down_block_types", ["DownEncoderBlock2D"] * len(blocks))
        values.setdefault("up_block_types", ["UpDecoderBlock2D"] * len(blocks))
        values.setdefault("layers_per_block", 2)
        values.setdefault("latent_channels", channels)
        self.values = values
        self.channels = values["latent_channels"]
        self.stride: int = 2 ** (len(blocks) - 1)
        self.scale, self.shift = (
            _number(values, name, default) for name, default in (("scaling_factor", _SCALE), ("shift_factor", 0.0))
        )
        if not self.scale:
            raise ConfigError("scaling_factor must not be 0")


def _number(values: Mapping[str, Any], name: str, default: float) -> float:
    value = values.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ConfigError(f"{name} must be a finite number, not {value!r:.80}")
    return float(value)


def _whole(settings: KlSettings) -> Any:
    """A new AutoencoderKL.

    Raises:
        MissingExtra: if diffusers is not installed.
        ConfigError: if AutoencoderKL has no such setting, or refuses its value.
    """
    require_extra("diffusers", "a VAE of diffusers")
    from diffusers import AutoencoderKL

    allowed = set(inspect.signature(AutoencoderKL.__init__).parameters) - {"self"}
    for name in settings.values:
        if name not in allowed:
            raise ConfigError(f"AutoencoderKL has no setting {name!r:.80}; {closest(name, allowed)}")
    try:
        return AutoencoderKL(**settings.values)
    except (ValueError, TypeError, RuntimeError, AttributeError, IndexError, ZeroDivisionError) as problem:
        raise ConfigError(f"diffusers makes no AutoencoderKL of these settings: {problem!s:.200}") from None


class KlEncoder(nn.Module):
    """Pictures to mean and logarithm of the variance of their latents; in float32 where others compute in less."""

    def __init__(self, settings: KlSettings) -> None:
        super().__init__()
        whole = _whole(settings)
        self.encoder, self.quant_conv = whole.encoder, whole.quant_conv

    def forward(self, images: Tensor) -> Tensor:
        """Images B 3 Y X -> B 2K y x: means, then logarithms of variances."""
        with torch.autocast(images.device.type, enabled=False):
            hidden = self.encoder(images.to(self.encoder.conv_in.weight.dtype))
            return hidden if self.quant_conv is None else self.quant_conv(hidden)


class KlDecoder(nn.Module):
    """Latents, not scaled, to pictures."""

    def __init__(self, settings: KlSettings) -> None:
        super().__init__()
        whole = _whole(settings)
        self.decoder, self.post_quant_conv = whole.decoder, whole.post_quant_conv

    def forward(self, latents: Tensor) -> Tensor:
        """Latents B K y x -> images B 3 Y X."""
        with torch.autocast(latents.device.type, enabled=False):
            latents = latents.to(self.decoder.conv_in.weight.dtype)
            return self.decoder(latents if self.post_quant_conv is None else self.post_quant_conv(latents))
