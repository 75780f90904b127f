"""What the header of a Matroska or WebM file claims: its tracks and the size of their pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

_SEGMENT, _TRACKS, _TRACK, _VIDEO, _CLUSTER = 0x18538067, 0x1654AE6B, 0xAE, 0xE0, 0x1F43B675
_WIDTH, _HEIGHT = 0xB0, 0xBA
_ATTACHMENTS, _ATTACHED_FILE = 0x1941A469, 0x61A7
_MOST_ELEMENTS = 100_000


@dataclass(kw_only=True)
class MatroskaClaims:
    """The sums of a file's claims."""

    tracks: int = 0
    pictures: list[tuple[int, int]] = field(default_factory=list)
    """Width and height of each video track's pictures."""


def claims_of(stream: BinaryIO, length: int) -> MatroskaClaims:
    """The claims of a file, read up to its first cluster of packets."""
    claims = MatroskaClaims()
    for name, start, end in _elements(stream, 0, length):
        if name == _SEGMENT:
            for child, child_start, child_end in _elements(stream, start, end):
                if child == _CLUSTER:
                    return claims
                if child == _ATTACHMENTS:  # pictures among them become video tracks
                    files = sum(name == _ATTACHED_FILE for name, _, _ in _elements(stream, child_start, child_end))
                    claims.tracks += files
                    claims.pictures += [(0, 0)] * files
                if child == _TRACKS:
                    _add_tracks(stream, child_start, child_end, claims)
    return claims


def _add_tracks(stream: BinaryIO, start: int, end: int, claims: MatroskaClaims) -> None:
    for name, track_start, track_end in _elements(stream, start, end):
        if name != _TRACK:
            continue
        claims.tracks += 1
        for part, part_start, part_end in _elements(stream, track_start, track_end):
            if part == _VIDEO:
                numbers = {
                    key: int.from_bytes(_read(stream, value_start, min(8, value_end - value_start)), "big")
                    for key, value_start, value_end in _elements(stream, part_start, part_end)
                    if key in (_WIDTH, _HEIGHT)
                }
                claims.pictures.append((numbers.get(_WIDTH, 0), numbers.get(_HEIGHT, 0)))


def _elements(stream: BinaryIO, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Name of each element, and where its payload starts and ends."""
    for _ in range(_MOST_ELEMENTS):
        head = _read(stream, position, 12)
        if position >= end or len(head) < 2 or not head[0]:
            return
        name_bytes = 9 - head[0].bit_length()
        if name_bytes > 4 or len(head) <= name_bytes or not head[name_bytes]:
            return
        size_bytes = 9 - head[name_bytes].bit_length()
        if len(head) < name_bytes + size_bytes:
            return
        size = int.from_bytes(head[name_bytes : name_bytes + size_bytes], "big") - (1 << 7 * size_bytes)
        start = position + name_bytes + size_bytes
        position = end if size == (1 << 7 * size_bytes) - 1 else min(end, start + size)  # all ones: to the end
        yield int.from_bytes(head[:name_bytes], "big"), start, position


def _read(stream: BinaryIO, position: int, size: int) -> bytes:
    stream.seek(position)
    return stream.read(size)
