"""How many frames the index tables of an MXF file claim. FFmpeg allocates by this number."""

from __future__ import annotations

import re
from typing import BinaryIO

_INDEX_TABLE = re.compile(rb"\x06\x0e\x2b\x34\x02\x53\x01.\x0d\x01\x02\x01\x01\x10\x01\x00", re.DOTALL)
_DURATION = 0x3F0C
_BLOCK_BYTES = 4 << 20
_OVERLAP = 256


def frames_of(stream: BinaryIO, length: int) -> int:
    """The sum of all index tables' lengths in frames; a table may be anywhere in the file."""
    frames = 0
    for position in range(0, length, _BLOCK_BYTES):
        stream.seek(position)
        block = stream.read(_BLOCK_BYTES + _OVERLAP)
        for match in _INDEX_TABLE.finditer(block, 0, min(len(block), _BLOCK_BYTES + 15)):
            frames += _duration(block[match.end() : match.end() + _OVERLAP])
    return frames


def _duration(table: bytes) -> int:
    """The length in frames by a table: its size, then items of tag, size and value."""
    position = 1 + (table[0] & 0x7F if table and table[0] & 0x80 else 0)
    while position + 4 <= len(table):
        tag, size = (int.from_bytes(table[position + i : position + i + 2], "big") for i in (0, 2))
        if tag == _DURATION:
            return int.from_bytes(table[position + 4 : position + 4 + size], "big")
        position += 4 + size
    return 0
