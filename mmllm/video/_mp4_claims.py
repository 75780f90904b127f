"""What the boxes of an MP4 or QuickTime file claim: tracks, samples, missing parts. FFmpeg allocates by these numbers.

A table of samples may be a few bytes that claim millions of entries, so entries are counted before FFmpeg sees them.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

_PARENTS = {
    *(b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"udta", b"dinf", b"wave", b"sinf", b"schi", b"tapt"),
    *(b"moof", b"traf", b"mvex", b"mfra", b"ilst", b"gmhd"),
}
_COUNTS_AT = {
    **dict.fromkeys((b"stts", b"ctts", b"stss", b"stps", b"stsc", b"stco", b"co64", b"elst", b"trun", b"keys"), 4),
    **dict.fromkeys((b"stsz", b"stz2", b"tfra"), 8),
}
"""Where in a table's payload the number of its entries is, by the table's name."""
_TABLE_OF_SAMPLES = (b"stsz", b"stz2", b"stco", b"co64", b"stsc", b"elst")
MOST_BOXES = 2_000_000
_DEPTH = 12
_UNPACKED_BYTES = 64 << 20


@dataclass(kw_only=True)
class Claims:
    """The sums of a file's claims."""

    kinds: set[bytes] = field(default_factory=set)
    """Names of the boxes of the file's top level."""
    cut: bytes = b""
    """Name of a box of the top level that goes beyond the end of the file."""
    brand: bytes = b""
    tracks: int = 0
    pictures: list[tuple[int, int]] = field(default_factory=list)
    """Width and height of each video track's pictures."""
    frames: int = 0
    """Samples of the largest video track."""
    entries: int = 0
    """Entries that FFmpeg would allocate for all tables together."""
    encrypted: bool = False
    fragmented: bool = False
    """Whether the index says that samples follow in fragments."""
    boxes: int = 0


def claims_of(stream: BinaryIO, length: int) -> Claims:
    """The claims of a file.

    Args:
        stream: the file, seekable.
        length: its length in bytes.
    """
    claims = Claims()
    for kind, start, end in _boxes(stream, 0, length):
        claims.kinds.add(kind)
        claims.boxes += 1
        if end > length:
            claims.cut, end = kind, length
        if kind == b"ftyp" and not claims.brand:
            claims.brand = _read(stream, start, 4)
        _look(stream, kind, start, end, claims, {}, 0)
        if claims.boxes > MOST_BOXES:
            break
    return claims


def _boxes(stream: BinaryIO, position: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Name of each box, and where its payload starts and ends; the last may go beyond `end`."""
    while position + 8 <= end:
        head = _read(stream, position, 16)
        if len(head) < 8:
            return
        size, kind = struct.unpack(">I4s", head[:8])
        payload = position + 8
        if size == 1 and len(head) == 16:
            size, payload = struct.unpack(">Q", head[8:])[0], position + 16
        elif size == 0:
            size = end - position
        if position + size < payload:
            return
        yield kind, payload, position + size
        position += size


def _read(stream: BinaryIO, position: int, size: int) -> bytes:
    stream.seek(position)
    return stream.read(size)


def _look(
    stream: BinaryIO, kind: bytes, start: int, end: int, claims: Claims, track: dict[bytes, int], depth: int
) -> None:
    """Adds the claims of a box and of all boxes in it; `track` collects the numbers of the track that it is in."""
    if kind in _COUNTS_AT:
        _count(stream, kind, start, end, claims, track)
    elif kind == b"hdlr":
        track.setdefault(b"vide", int(_read(stream, start + 8, 4) == b"vide"))
    elif kind == b"stsd":
        _look_at_formats(_read(stream, start + 8, max(0, min(end - start - 8, 4096))), claims, track)
    elif kind == b"cmov":
        _look_inside_compressed(stream, start, end, claims, depth)
    elif kind == b"covr":  # each cover becomes a video track
        covers = sum(child == b"data" for child, _, _ in _boxes(stream, start, end))
        claims.tracks += covers
        claims.pictures += [(0, 0)] * min(covers, 10_000)
    elif kind in _PARENTS or kind == b"meta" or (kind in (b"free", b"hoov") and _hides_index(stream, start)):
        claims.fragmented |= kind == b"mvex"
        children: dict[bytes, int] = {} if kind == b"trak" else track
        if kind == b"meta":  # FFmpeg goes on at the first `hdlr`, wherever it is
            start += max(0, _read(stream, start, min(end - start, 1 << 16)).find(b"hdlr") - 4)
        if depth < _DEPTH:
            for child, child_start, child_end in _boxes(stream, start, end):
                claims.boxes += 1
                if claims.boxes > MOST_BOXES:
                    return
                _look(stream, child, child_start, min(child_end, end), claims, children, depth + 1)
        if kind == b"trak":
            _add_track(claims, children)


def _count(stream: BinaryIO, kind: bytes, start: int, end: int, claims: Claims, track: dict[bytes, int]) -> None:
    """Adds the number of a table's entries."""
    at = _COUNTS_AT[kind]
    payload = _read(stream, start, at + 4)
    if len(payload) < at + 4:
        return
    count = int.from_bytes(payload[at:], "big")
    if kind in _TABLE_OF_SAMPLES:
        track[kind] = max(track.get(kind, 0), count)
    if kind == b"stts" and count == 1 and _read(stream, start + 12, 4) == b"\0\0\0\1":
        track[b"chunks"] = 1  # FFmpeg then lists chunks of 1,024 samples, not samples
    if kind == b"stsc":
        track[b"blocks"] = _blocks(_read(stream, start + 8, max(0, min(12 * count, end - start - 8, _UNPACKED_BYTES))))
    if kind not in (b"stsz", b"stz2"):
        claims.entries += count


def _blocks(runs: bytes) -> int:
    """The largest number of blocks of 1,024 samples in one chunk, by the runs of `stsc`."""
    return max(
        (-(-samples // 1024) for _, samples, _ in struct.iter_unpack(">3I", runs[: len(runs) // 12 * 12])), default=0
    )


def _add_track(claims: Claims, track: dict[bytes, int]) -> None:
    claims.tracks += 1
    samples = max(track.get(b"stsz", 0), track.get(b"stz2", 0))
    if track.get(b"vide"):
        claims.frames = max(claims.frames, samples)
    elif b"chunks" in track:
        chunks = max(track.get(b"stco", 0), track.get(b"co64", 0))
        samples = chunks * track.get(b"blocks", 0)
    edits = track.get(b"elst", 0)
    claims.entries += samples * max(1, edits - 2)  # each edit may list all samples again; few edits are ordinary


def _look_at_formats(formats: bytes, claims: Claims, track: dict[bytes, int]) -> None:
    """The size of a video track's pictures, and whether they are encrypted, by the first entry of `stsd`."""
    claims.encrypted |= formats[4:8] == b"encv"
    if len(formats) >= 36 and track.get(b"vide"):
        width, height = struct.unpack(">HH", formats[32:36])
        claims.pictures.append((width, height))


def _hides_index(stream: BinaryIO, start: int) -> bool:
    """True for a free box that holds an index; FFmpeg reads it."""
    return _read(stream, start, 8)[4:] in (b"mvhd", b"cmov")


def _look_inside_compressed(stream: BinaryIO, start: int, end: int, claims: Claims, depth: int) -> None:
    """Adds the claims of a compressed index: `dcom`, then `cmvd` with the unpacked length and the packed index."""
    packed = b""
    for kind, child_start, child_end in _boxes(stream, start, end):
        if kind == b"cmvd":
            size = int.from_bytes(_read(stream, child_start, 4), "big")
            claims.entries += size // 64
            packed = _read(stream, child_start + 4, min(child_end, end) - child_start - 4)
    try:
        unpacked = zlib.decompressobj().decompress(packed, _UNPACKED_BYTES)
    except zlib.error:
        return
    if depth < _DEPTH:
        inside = io.BytesIO(unpacked)
        for kind, child_start, child_end in _boxes(inside, 0, len(unpacked)):
            _look(inside, kind, child_start, min(child_end, len(unpacked)), claims, {}, depth + 1)
