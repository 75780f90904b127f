"""FLV files that were joined byte by byte. FFmpeg stops at the header of the second one, so headers are left out."""

from __future__ import annotations

import io
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import accumulate, islice, pairwise
from typing import BinaryIO, cast

from mmllm.video._sources import MediaFile

_HEADER = re.compile(rb"FLV\x01[\x00\x01\x04\x05]\x00\x00\x00\x09\x00\x00\x00\x00(?=[\x08\x09\x12])", re.DOTALL)
_HEADER_BYTES = 13
_TAG_BYTES = 11  # type, size, time and stream before the data of a tag; its size in four bytes stands behind them
_TAGS = (8, 9, 18)  # sound, pictures, data
_BLOCK = 1 << 20
_MOST_PARTS = 1000


def joined_flv(media: MediaFile, give_up: Callable[[], bool]) -> BinaryIO | None:
    """The file without the headers of all parts but the first; None if it has only one part.

    Args:
        media: the file.
        give_up: asked again and again; True ends the search for parts.
    """
    try:
        file = media.stream() if media.path is None else open(media.path, "rb")  # noqa: SIM115
    except OSError:
        return None  # whoever opens it next says why
    headers = list(islice(_later_headers(file, give_up), _MOST_PARTS))
    if headers:
        edges = [0, *(edge for header in headers for edge in (header, header + _HEADER_BYTES)), media.length]
        return cast(BinaryIO, _Parts(file, list(pairwise(edges))[::2], own=media.path is not None))
    if media.path is not None:
        file.close()
    return None


def _later_headers(file: BinaryIO, give_up: Callable[[], bool]) -> Iterator[int]:
    """Places of the headers after the first byte: the tags are followed, and bytes that are no tags are searched."""
    place: int | None = 0
    while place is not None and not give_up():
        file.seek(place)
        start = file.read(_HEADER_BYTES + 1)
        if not start:
            return
        if _HEADER.match(start):
            if place:
                yield place
            place += _HEADER_BYTES
        else:
            place = _after_tag(file, place, start) or _next_header(file, place + 1, give_up)


def _after_tag(file: BinaryIO, place: int, start: bytes) -> int | None:
    """Where the tag at a place ends; None if there is none, or it does not end with its size, as one that was cut."""
    size = _TAG_BYTES + int.from_bytes(start[1:4], "big")
    if start[0] not in _TAGS:
        return None
    file.seek(place + size)
    return place + size + 4 if file.read(4) == size.to_bytes(4, "big") else None


def _next_header(file: BinaryIO, place: int, give_up: Callable[[], bool]) -> int | None:
    """Place of the next header; None if there is none, or the search is given up."""
    file.seek(place)
    before = b""
    while (block := file.read(_BLOCK)) and not give_up():
        data = before + block
        if match := _HEADER.search(data):
            return place - len(before) + match.start()
        before, place = data[-_HEADER_BYTES:], place + len(block)
    return None


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
