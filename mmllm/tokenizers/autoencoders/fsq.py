"""Finite scalar quantisation: each channel of a latent is rounded to one of a few levels. It has no weights.

... any leading axes, D channels of a latent, one for each entry of `levels`
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from mmllm.errors import ConfigError, InputError

_MARGIN = 1.001
"""The bounded values reach a little beyond the outermost levels, so that these are reached as well."""


class FiniteScalarQuantizer:
    """Rounds latents to codes, and numbers the codes (FSQ, arXiv 2309.15505).

    A code is -1 to 1 in each channel. Its id counts the levels of all channels, the first channel fastest. Everything
    is computed in float32.
    """

    def __init__(self, levels: Sequence[int]) -> None:
        """Takes the number of levels of each channel.

        Raises:
            ConfigError: if there is no channel, or a channel has fewer than two levels.
        """
        if not levels or min(levels) < 2:
            raise ConfigError(f"levels must be whole numbers of at least 2, one for each channel, not {list(levels)}")
        self.levels = tuple(levels)

    @cached_property
    def codebook_size(self) -> int:
        """How many codes there are."""
        return math.prod(self.levels)

    @cached_property
    def basis(self) -> tuple[int, ...]:
        """What a step of each channel adds to the id."""
        return tuple(math.prod(self.levels[:channel]) for channel in range(len(self.levels)))

    def bounded(self, latents: Tensor) -> Tensor:
        """Latents (... D) squeezed by tanh to the range of their levels: float32, ... D. Rounding is the next step."""
        self._check_width(latents)
        levels = self._row(self.levels, latents.device)
        half_range = (levels - 1) * _MARGIN / 2
        offset = torch.where(levels % 2 == 0, 0.5, 0.0)  # an even number of levels has no level at 0
        return (latents.float() + (offset / half_range).atanh()).tanh() * half_range - offset

    def quantize(self, latents: Tensor) -> Tensor:
        """Codes (float32, ... D) of latents (... D). The gradient passes the rounding unchanged."""
        bounded = self.bounded(latents)
        rounded = bounded + (bounded.round() - bounded).detach()
        return rounded / self._half_levels(latents.device)

    def levels_of(self, codes: Tensor) -> Tensor:
        """The level of each channel, from 0 (int64, ... D), of codes (... D)."""
        self._check_width(codes)
        half_levels = self._half_levels(codes.device)
        return ((codes.float() * half_levels).round() + half_levels).long()

    def ids(self, codes: Tensor) -> Tensor:
        """Ids (int64, ...) of codes (... D)."""
        return (self.levels_of(codes) * torch.tensor(self.basis, device=codes.device)).sum(-1)

    def codes(self, ids: Tensor) -> Tensor:
        """Codes (float32, ... D) of ids (integers, ...).

        Raises:
            InputError: for an id that is no whole number from 0 to `codebook_size` - 1.
        """
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise InputError(f"ids must be whole numbers, not {ids.dtype}")
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.codebook_size:
            raise InputError(
                f"ids must be 0 to {self.codebook_size - 1}, and these are {int(ids.min())} to {int(ids.max())}"
            )
        basis = torch.tensor(self.basis, device=ids.device)
        levels = torch.tensor(self.levels, device=ids.device)
        half_levels = self._half_levels(ids.device)
        return ((ids.long().unsqueeze(-1) // basis) % levels - half_levels) / half_levels

    def _check_width(self, values: Tensor) -> None:
        if values.shape[-1:] != (len(self.levels),):
            raise InputError(f"quantised are {len(self.levels)} channels, not the shape {tuple(values.shape)}")

    def _half_levels(self, device: torch.device) -> Tensor:
        return self._row([count // 2 for count in self.levels], device)

    @staticmethod
    def _row(values: Sequence[int], device: torch.device) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)
