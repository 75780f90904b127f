"""Size, depth and reference frames of H.264 and HEVC video, read from its sequence parameter set (SPS).

The decoder allocates by these numbers, whatever the container says.
"""

from __future__ import annotations

from dataclasses import dataclass

_HIGH_PROFILES = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)
_SEQUENCE_UNIT = {"h264": 7, "hevc": 33}
_MOST_BYTES = 1024
"""A longer parameter set is read only up to here; what we need comes first, except scaling lists."""


@dataclass(frozen=True, kw_only=True)
class SequenceParameters:
    """What a decoder must be ready for."""

    width: int
    height: int
    depth: int
    """Bits of a sample."""
    references: int
    """Decoded frames that must be kept."""


def sequence_parameters(codec: str, configuration: bytes) -> SequenceParameters | None:
    """The first SPS in a codec's configuration record, or in a stream with start codes; None if there is none.

    Args:
        codec: `h264` or `hevc`; for others the result is None.
        configuration: an `avcC` or `hvcC` record, or bytes with start codes.
    """
    if codec not in _SEQUENCE_UNIT:
        return None
    for unit in _units(codec, configuration):
        kind = unit[0] & 0x1F if codec == "h264" else unit[0] >> 1 & 0x3F
        if kind == _SEQUENCE_UNIT[codec]:
            try:
                return _h264(unit[1:]) if codec == "h264" else _hevc(unit[2:])
            except IndexError:
                return None
    return None


def _units(codec: str, data: bytes) -> list[bytes]:
    """The units of a configuration record or of a stream with start codes; none is empty."""
    if data[:1] != b"\x01":
        return [unit for unit in data.split(b"\x00\x00\x01")[1:] if len(unit) > 2]
    units: list[bytes] = []
    position = 6 if codec == "h264" else 23
    arrays = 1 if codec == "h264" else data[22] if len(data) > 22 else 0
    for _ in range(arrays):
        if codec == "h264":
            count = data[5] & 31 if len(data) > 5 else 0
        else:
            count = int.from_bytes(data[position + 1 : position + 3], "big")
            position += 3
        for _ in range(count):
            length = int.from_bytes(data[position : position + 2], "big")
            unit = data[position + 2 : position + 2 + length]
            if len(unit) < 3:
                return units
            units.append(unit)
            position += 2 + length
    return units


class _Bits:
    """The bits of a unit, without the bytes that keep start codes out of it. Its end raises IndexError."""

    def __init__(self, unit: bytes) -> None:
        self._data, self._position = unit[:_MOST_BYTES].replace(b"\x00\x00\x03", b"\x00\x00"), 0

    def number(self, bits: int) -> int:
        """The next bits as a number."""
        value = 0
        for _ in range(bits):
            value = value << 1 | self._data[self._position >> 3] >> (7 - (self._position & 7)) & 1
            self._position += 1
        return value

    def skip(self, bits: int) -> None:
        """Goes on behind the next bits."""
        self._position += bits

    def golomb(self) -> int:
        """The next number in Exp-Golomb code."""
        zeros = 0
        while not self.number(1):
            zeros += 1
        return (1 << zeros) - 1 + self.number(zeros)

    def signed(self) -> int:
        """The next signed number in Exp-Golomb code."""
        code = self.golomb()
        return (code + 1) // 2 if code & 1 else -(code // 2)


def _h264(unit: bytes) -> SequenceParameters:
    bits = _Bits(unit)
    profile = bits.number(8)
    bits.skip(16)
    bits.golomb()  # number of the set
    depth, chroma = 8, 1
    if profile in _HIGH_PROFILES:
        chroma = bits.golomb()
        if chroma == 3:
            bits.skip(1)
        depth = 8 + bits.golomb()
        bits.golomb()
        bits.skip(1)
        if bits.number(1):
            for matrix in range(12 if chroma == 3 else 8):
                if bits.number(1):
                    _skip_scaling_list(bits, 16 if matrix < 6 else 64)
    bits.golomb()
    order = bits.golomb()
    if order == 0:
        bits.golomb()
    elif order == 1:
        bits.skip(1)
        bits.golomb()
        bits.golomb()
        for _ in range(bits.golomb()):
            bits.golomb()
    references = bits.golomb()
    bits.skip(1)
    width = 16 * (bits.golomb() + 1)
    rows = bits.golomb() + 1
    fields = 1 if bits.number(1) else 2
    return SequenceParameters(width=width, height=16 * rows * fields, depth=depth, references=references)


def _skip_scaling_list(bits: _Bits, size: int) -> None:
    last, following = 8, 8
    for _ in range(size):
        if following:
            following = (last + bits.signed()) % 256
        last = following or last


def _hevc(unit: bytes) -> SequenceParameters:
    bits = _Bits(unit)
    bits.skip(4)
    layers = bits.number(3)
    bits.skip(1 + 88 + 8)  # nesting, general profile, general level
    present = [(bits.number(1), bits.number(1)) for _ in range(layers)]
    if layers:
        bits.skip(2 * (8 - layers))
    for profile, level in present:
        bits.skip(88 * profile + 8 * level)
    bits.golomb()  # number of the set
    if bits.golomb() == 3:
        bits.skip(1)
    width, height = bits.golomb(), bits.golomb()
    if bits.number(1):
        for _ in range(4):
            bits.golomb()
    depth = 8 + bits.golomb()
    bits.golomb()
    bits.golomb()
    every_layer = bits.number(1)
    references = 0
    for _ in range(layers + 1 if every_layer else 1):
        references = max(references, bits.golomb())
        bits.golomb()
        bits.golomb()
    return SequenceParameters(width=width, height=height, depth=depth, references=references)
