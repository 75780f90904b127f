"""Signs of damage that can be seen without decoding: a file cut short, packets that are no sequence of units."""

from __future__ import annotations

import io
from typing import Any, BinaryIO

from mmllm.video._sources import MediaFile

_MATROSKA_SEGMENT = b"\x18\x53\x80\x67"


def cut_short(media: MediaFile, container: str, declared: int, packets: int) -> str:
    """What the header declares and the file lacks, in words; empty if nothing is missing.

    Args:
        media: the file.
        container: FFmpeg's name of it.
        declared: frames according to the header, 0 if it does not say.
        packets: frames that the file holds.
    """
    if container == "mov":
        return f"{packets} of {declared} declared frames are there" if packets < declared else ""
    wanted = 0
    if container == "avi":
        wanted = 8 + int.from_bytes(media.head[4:8], "little")
    elif container == "matroska":
        wanted = _matroska_length(media.head)
    if media.length < wanted:
        return f"{media.length} of {wanted} declared bytes are there"
    return ""


def _matroska_length(head: bytes) -> int:
    """Length of a Matroska file by its header; 0 where that is left open, as in a recording."""
    stream = io.BytesIO(head)
    stream.read(4)
    stream.seek(_vint(stream) or 0, io.SEEK_CUR)
    if stream.read(4) != _MATROSKA_SEGMENT:
        return 0
    length = _vint(stream)
    return 0 if length is None else stream.tell() + length


def _vint(stream: BinaryIO) -> int | None:
    """A number of Matroska's variable length, None if it is the one that means unknown."""
    first = stream.read(1)
    if not first or not first[0]:
        return None
    length = 9 - first[0].bit_length()
    value = int.from_bytes(first + stream.read(length - 1), "big") - (1 << 7 * length)
    return None if value == (1 << 7 * length) - 1 else value


class UnitCheck:
    """Checks that each packet of H.264 or HEVC with length prefixes is filled by whole, non-empty units."""

    def __init__(self, codec: Any) -> None:
        configuration = codec.extradata or b""
        place = {"h264": 4, "hevc": 21}.get(codec.name)
        usable = place is not None and len(configuration) > (place or 0) and configuration[0] == 1
        self._prefix = (configuration[place] & 3) + 1 if usable else 0  # type: ignore[index]

    def intact(self, packet: Any) -> bool:
        """False where the packet is certainly damaged."""
        if not self._prefix:
            return True
        data = memoryview(packet)
        position, prefix, end = 0, self._prefix, len(data)
        while position + prefix < end:
            length = int.from_bytes(data[position : position + prefix], "big")
            position += prefix
            if not length or data[position] & 0x80:
                return False
            position += length
        return position == end
