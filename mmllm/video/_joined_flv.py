"""FLV files that were joined byte by byte. FFmpeg stops at the header of the second one, so headers are left out."""

from __future__ import annotations

import io
import re
from bisect import bisect_right
from itertools import accumulate, pairwise
from typing import BinaryIO, cast

from mmllm.video._sources import MediaFile

_HEADER = re.compile(rb"FLV\x01[\x00\x01\x04\x05]\x00\x00\x00\x09\x00\x00\x00\x00(?=[\x08\x09\x12])", re.DOTALL)
_HEADER_BYTES = 13
_BLOCK = 1 << 20
_MOST_PARTS = 1000


def joined_flv(media: MediaFile) -> BinaryIO | None:
    """The file without the headers of all parts but the first; None if it has only one part."""
    try:
        file = media.stream() if media.path is None else open(media.path, "rb")  # noqa: SIM115
    except OSError:
        return None  # whoever opens it next says why
    headers = _later_headers(file)
    if headers:
        edges = [0, *(edge for header in headers for edge in (header, header + _HEADER_BYTES)), media.length]
        return cast(BinaryIO, _Parts(file, list(pairwise(edges))[::2], own=media.path is not None))
    if media.path is not None:
        file.close()
    return None


def _later_headers(file: BinaryIO) -> list[int]:
    """Places of the headers after the first byte."""
    places: list[int] = []
    before, position = b"", 0
    file.seek(0)
    while (block := file.read(_BLOCK)) and len(places) < _MOST_PARTS:
        data, start = before + block, position - len(before)
        places += [start + match.start() for match in _HEADER.finditer(data)]
        before, position = data[-_HEADER_BYTES:], position + len(block)
    return sorted({place for place in places if place > 0})[:_MOST_PARTS]


class _Parts(io.RawIOBase):
    """Parts of a file as one file.

    Args:
        file: the file.
        parts: begin and end of each part.
        own: whether the file is closed with this object.
    """

    def __init__(self, file: BinaryIO, parts: list[tuple[int, int]], *, own: bool) -> None:
        self._file, self._parts, self._own = file, parts, own
        self._starts = [0, *accumulate(end - begin for begin, end in parts)]
        """Where each part begins in the whole, and the length of the whole."""
        self._position = 0

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes; fewer only at the end."""
        remaining = self._starts[-1] - self._position
        remaining = remaining if size < 0 else min(size, remaining)
        blocks = []
        while remaining > 0:
            part = bisect_right(self._starts, self._position) - 1
            begin, end = self._parts[part]
            place = begin + self._position - self._starts[part]
            self._file.seek(place)
            block = self._file.read(min(remaining, end - place))
            if not block:
                break
            blocks.append(block)
            self._position += len(block)
            remaining -= len(block)
        return b"".join(blocks)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves to a place and returns it."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._starts[-1]}[whence]
        self._position = min(max(base + offset, 0), self._starts[-1])
        return self._position

    def tell(self) -> int:
        """The place of the next byte."""
        return self._position

    def close(self) -> None:
        """Closes the file, if it was opened for this object."""
        if self._own and not self.closed:
            self._file.close()
        super().close()

    def seekable(self) -> bool:
        """True."""
        return True

    def readable(self) -> bool:
        """True."""
        return True
