"""Signs of damage that are visible without decoding: a file that is cut short, packets with broken units."""

from __future__ import annotations

import io
from typing import Any, BinaryIO

from mmllm.video._sources import MediaFile

_MATROSKA_SEGMENT = b"\x18\x53\x80\x67"


def cut_short(media: MediaFile, container: str, declared: int, packets: int) -> str:
    """What the file holds of what its header declares, in words; empty if nothing is missing.

    Args:
        media: the file.
        container: FFmpeg's name of the container.
        declared: frames according to the header, 0 if it does not say.
        packets: frames that the file holds.
    """
    if container == "mov":
        return f"the file holds {packets} of {declared} declared frames" if packets < declared else ""
    declared_bytes = 0
    if container == "avi":
        declared_bytes = 8 + int.from_bytes(media.head[4:8], "little")
    elif container == "matroska":
        declared_bytes = _matroska_length(media.head)
    if media.length < declared_bytes:
        return f"the file holds {media.length} of {declared_bytes} declared bytes"
    return ""


def _matroska_length(head: bytes) -> int:
    """Length in bytes of a Matroska file by its header; 0 if the header leaves it open, as a recording does."""
    stream = io.BytesIO(head)
    stream.read(4)
    stream.seek(_vint(stream) or 0, io.SEEK_CUR)
    if stream.read(4) != _MATROSKA_SEGMENT:
        return 0
    length = _vint(stream)
    return 0 if length is None else stream.tell() + length


def _vint(stream: BinaryIO) -> int | None:
    """A number of variable length, as Matroska writes it; None for the value that means "unknown"."""
    first = stream.read(1)
    if not first or not first[0]:
        return None
    length = 9 - first[0].bit_length()
    value = int.from_bytes(first + stream.read(length - 1), "big") - (1 << 7 * length)
    return None if value == (1 << 7 * length) - 1 else value


class UnitCheck:
    """Checks packets of H.264 and HEVC with length prefixes: each must consist of whole, non-empty units."""

    def __init__(self, codec: Any) -> None:
        configuration = codec.extradata or b""
        offset = {"h264": 4, "hevc": 21}.get(codec.name)  # of the byte that says how long length prefixes are
        self._prefix_bytes = 0
        if offset is not None and len(configuration) > offset and configuration[0] == 1:
            self._prefix_bytes = (configuration[offset] & 3) + 1

    def intact(self, packet: Any) -> bool:
        """False if the packet is certainly damaged."""
        if not self._prefix_bytes:
            return True
        data = memoryview(packet)
        position, prefix, end = 0, self._prefix_bytes, len(data)
        while position + prefix < end:
            length = int.from_bytes(data[position : position + prefix], "big")
            position += prefix
            if not length or data[position] & 0x80:
                return False
            position += length
        return position == end
