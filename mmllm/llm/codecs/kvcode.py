"""CacheGen's codec: keys and values in few bins, and an entropy coder with a table for each channel (SIGCOMM 2024).

    states -> anchors, differences from them -> codes of b bins, a scale for each token -> range coder -> bytes

With `anchors=0` every token is coded by itself, as the released code does it. The paper (arXiv 2310.07240) codes groups
of ten: the first in 256 bins, the others as differences from it. Only the rounding to bins loses anything.

G key heads, P positions, D head width, C = G D channels, S symbols
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from mmllm.errors import CheckpointError, require_extra
from mmllm.fields import require
from mmllm.llm.codec import CacheCodec, Role
from mmllm.registry import register

ANCHOR_BINS = SYMBOLS = 256
"""Bins of an anchor, and symbols of a table: those of a byte."""


@dataclass(frozen=True, kw_only=True)
class KvCodeConfig:
    """The defaults are those of the release for an LLM of 7 B parameters, which has 32 layers."""

    keys: int = 32
    """Bins of the keys in the first layers."""
    values: int = 32
    """Bins of the values in the first layers."""
    later: int = 16
    """Bins of both in the other layers."""
    key_layers: int = 10
    """How many first layers have `keys` bins."""
    value_layers: int = 2
    """How many first layers have `values` bins."""
    anchors: int = 0
    """One token in so many is an anchor, and the others are differences from it; 0: no token is."""
    scale: Literal["token", "head"] = "token"
    """What has one scale: all heads of a token, as in the release, or each of them."""
    coder: Literal["range", "zlib"] = "range"
    """`range`: arithmetic coding with a table for each channel (needs the extra `kv`). `zlib`: no table, no extra."""

    def __post_init__(self) -> None:
        for name in ("keys", "values", "later"):
            require(4 <= getattr(self, name) <= ANCHOR_BINS, self, name, f"from 4 to {ANCHOR_BINS}")
        for name in ("key_layers", "value_layers", "anchors"):
            require(getattr(self, name) >= 0, self, name, "zero or more")
        require(self.anchors != 1, self, "anchors", "0, or at least 2: with 1 every token is an anchor")

    def bins(self, layer: int, role: Role) -> int:
        """Bins of the keys or values of a layer."""
        first, count = (self.keys, self.key_layers) if role == "keys" else (self.values, self.value_layers)
        return first if layer < count else self.later


def quantised(states: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Codes (uint8, ... C) from 0 to 2 (bins // 2 - 1), and the largest magnitude of each row (float32, ... 1).

    Args:
        states: float, ... C.
        bins: 4 to 256.
    """
    most = bins // 2 - 1
    states = states.float()
    scale = states.abs().amax(-1, keepdim=True)
    codes = (states * (most / scale.clamp(min=torch.finfo(torch.float32).tiny))).round() + most  # a row of zeros: most
    return codes.to(torch.uint8), scale


def restored(codes: Tensor, scale: Tensor, bins: int) -> Tensor:
    """float32, ... C: the states that codes stand for."""
    most = bins // 2 - 1
    return (codes.float() - most) / most * scale


@register("codec", "kvcode", config=KvCodeConfig)
class KvCode(CacheCodec):
    """CacheGen: keys and values in few bins, and arithmetic coding with a table for each channel."""

    def __init__(self, config: KvCodeConfig) -> None:
        self.config = config
        if config.coder == "range":
            require_extra("kv", "kvcode:coder=range")

    def encode(self, states: Tensor, layer: int, role: Role) -> dict[str, Tensor]:
        """`codes` (bytes), their `checksum` and `scale`; with the range coder also `counts`, its tables."""
        rows, bins = self._rows(states), self.config.bins(layer, role)
        is_anchor = self._is_anchor(len(rows))
        codes, scale = quantised(rows, bins)
        if self.config.anchors:
            anchor_codes, anchor_scale = quantised(rows[is_anchor], ANCHOR_BINS)
            anchors = restored(anchor_codes, anchor_scale, ANCHOR_BINS)
            codes, scale = quantised(rows.float() - anchors[self._group(len(rows))], bins)
            codes[is_anchor], scale[is_anchor] = anchor_codes, anchor_scale
        table = codes.flatten(1).cpu().numpy()  # P C
        checksum = np.array([zlib.crc32(table.tobytes())], np.int64)
        parts: dict[str, np.ndarray] = {"scale": scale.squeeze(-1).cpu().numpy(), "checksum": checksum}
        if self.config.coder == "zlib":
            parts["codes"] = _packed(table.T)
        else:
            coder, counts = _encoder(), []
            for own in (is_anchor.numpy(), ~is_anchor.numpy()):
                counts.append(_counts(table[own]))
                for channel, frequencies in zip(table[own].T, counts[-1], strict=True):
                    _encode(coder, channel, frequencies)
            parts["codes"] = np.frombuffer(coder.get_compressed().astype("<u4").tobytes(), np.uint8)
            parts["counts"] = _packed(np.stack(counts).astype(_whole_numbers(len(table))))
        return {name: torch.from_numpy(part.copy()) for name, part in parts.items()}

    def decode(self, stored: Mapping[str, Tensor], shape: tuple[int, int, int], layer: int, role: Role) -> Tensor:
        """float32, G P D."""
        heads, positions, width = shape
        try:
            table = self._table(stored, positions, heads * width)
            if stored["checksum"].tolist() != [zlib.crc32(table.tobytes())]:
                raise ValueError("the codes do not fit their checksum")
            scale = stored["scale"].float().unsqueeze(-1)  # P 1, or P G 1
        except (KeyError, ValueError, AssertionError, zlib.error) as problem:
            raise CheckpointError(f"the {role} of layer {layer} cannot be decoded: {problem!s:.200}") from None
        codes = torch.from_numpy(table)
        by_head = self.config.scale == "head"
        codes = rearrange(codes, "p (g d) -> p g d", g=heads) if by_head else codes
        expected = (*codes.shape[:-1], 1)
        if scale.shape != expected or not bool(scale.isfinite().all()):
            raise CheckpointError(f"the scales of the {role} of layer {layer} must be finite and of {expected[:-1]}")
        states = restored(codes, scale, self.config.bins(layer, role))
        if self.config.anchors:
            is_anchor = self._is_anchor(positions)
            anchors = restored(codes[is_anchor], scale[is_anchor], ANCHOR_BINS)
            states = states + anchors[self._group(positions)]
            states[is_anchor] = anchors
        return rearrange(states, "p g d -> g p d" if by_head else "p (g d) -> g p d", g=heads)

    def _rows(self, states: Tensor) -> Tensor:
        """States in rows that have one scale: P C, or P G D."""
        return rearrange(states, "g p d -> p g d" if self.config.scale == "head" else "g p d -> p (g d)")

    def _is_anchor(self, positions: int) -> Tensor:
        """bool, P."""
        place = torch.arange(positions)
        return place % self.config.anchors == 0 if self.config.anchors else torch.zeros_like(place, dtype=torch.bool)

    def _group(self, positions: int) -> Tensor:
        """int64, P: which anchor belongs to each position."""
        return torch.arange(positions) // self.config.anchors

    def _table(self, stored: Mapping[str, Tensor], positions: int, channels: int) -> np.ndarray:
        """uint8, P C: the codes.

        Raises:
            KeyError, ValueError, AssertionError, zlib.error: if the bytes are something else.
        """
        data = _bytes(stored["codes"])
        if self.config.coder == "zlib":
            return _unpacked(data, np.uint8, (channels, positions)).T.copy()
        counts = _unpacked(_bytes(stored["counts"]), _whole_numbers(positions), (2, channels, SYMBOLS))
        is_anchor = self._is_anchor(positions).numpy()
        decoder = _decoder(np.frombuffer(data, "<u4").astype(np.uint32))
        table = np.empty((positions, channels), np.uint8)
        for own, frequencies in zip((is_anchor, ~is_anchor), counts, strict=True):
            if (frequencies.sum(-1, dtype=np.int64) != own.sum()).any():
                raise ValueError("a table counts other positions")
            for channel in range(channels if own.any() else 0):
                table[own, channel] = _decode(decoder, frequencies[channel], int(own.sum()))
        return table


# --- bytes ------------------------------------------------------------------------------------------------------


def _packed(values: np.ndarray) -> np.ndarray:
    """uint8: the values, compressed by zlib."""
    return np.frombuffer(zlib.compress(np.ascontiguousarray(values).tobytes(), 9), np.uint8)


def _bytes(values: Tensor) -> bytes:
    """The bytes of a tensor of them.

    Raises:
        ValueError: if it is of another type.
    """
    if values.dtype != torch.uint8:
        raise ValueError(f"bytes are needed, not {values.dtype}")
    return values.numpy().tobytes()


def _unpacked(data: bytes, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `_packed`; never more bytes than the shape has.

    Raises:
        ValueError: if there are fewer or more.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    unpacking = zlib.decompressobj()
    values = unpacking.decompress(data, size + 1)
    if len(values) != size:
        raise ValueError(f"{size} bytes are needed, and there are {'more' if len(values) > size else len(values)}")
    return np.frombuffer(values, dtype).reshape(shape)


def _counts(table: np.ndarray) -> np.ndarray:
    """int64, C S: how often each channel of a table (uint8, P C) has each symbol."""
    channels = table.shape[1]
    places = table.astype(np.int64) + np.arange(channels) * SYMBOLS
    return np.bincount(places.ravel(), minlength=channels * SYMBOLS).reshape(channels, SYMBOLS)


def _whole_numbers(most: int) -> np.dtype[Any]:
    """The smallest type that holds numbers up to `most`."""
    return next(kind for kind in map(np.dtype, ("u1", "<u2", "<u4")) if most <= np.iinfo(kind).max)


def _encoder() -> Any:
    import constriction

    return constriction.stream.queue.RangeEncoder()


def _decoder(words: np.ndarray) -> Any:
    import constriction

    return constriction.stream.queue.RangeDecoder(words)


def _used(frequencies: np.ndarray) -> np.ndarray:
    """int64: the symbols that a channel has."""
    return frequencies.nonzero()[0]


def _model(frequencies: np.ndarray) -> Any:
    """The probabilities of the symbols that a channel has, of which there are at least two."""
    import constriction

    present = frequencies[_used(frequencies)].astype(np.float64)
    return constriction.stream.model.Categorical(present / present.sum(), perfect=False)


def _encode(coder: Any, channel: np.ndarray, frequencies: np.ndarray) -> None:
    """Adds a channel (uint8, P) to the coder; one that has a single symbol takes no bits."""
    used = _used(frequencies)
    if len(used) > 1:
        coder.encode(np.searchsorted(used, channel).astype(np.int32), _model(frequencies))


def _decode(decoder: Any, frequencies: np.ndarray, count: int) -> np.ndarray:
    """uint8: the next channel."""
    used = _used(frequencies)
    if len(used) == 1:
        return np.full(count, used[0], np.uint8)
    return used[decoder.decode(_model(frequencies), count)].astype(np.uint8)
