"""The text of an annotation file: unpacked, decoded, and refused by name if it is no text.

UTF-8 is read, with or without a byte-order mark, and UTF-16 and UTF-32 with one. In files of lines, a line that is not
UTF-8 is a bad row, and the other lines are read.
"""

from __future__ import annotations

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmllm.errors import InputError

UNPACKED_BYTES = 16 << 20
"""A gzipped file may unpack to so many bytes, or to `UNPACKED_TIMES` its size, whichever is more."""
UNPACKED_TIMES = 100
"""Annotations shrink to a tenth or a twentieth; a file that shrinks to a thousandth was made to fill the memory."""

_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",  # before UTF-16: its mark begins with that of UTF-16
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_UNPACK = "unpack it and give the annotation file inside"
_CONVERT = "write its rows as JSON lines first"
_KINDS: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"PAR1", "a parquet file", 'write its rows as JSON lines first: `datasets.load_dataset("parquet", ...)`'),
    (0, b"ARROW1", "an Arrow file", _CONVERT),
    (0, b"\xff\xff\xff\xff", "an Arrow stream", _CONVERT),
    (0, b"PK\x03\x04", "a zip archive (or a spreadsheet)", _UNPACK),
    (0, b"PK\x05\x06", "an empty zip archive", _UNPACK),
    (257, b"ustar", "a tar archive", _UNPACK),
    (0, b"\x1f\x8b", "a gzipped file in a gzipped file", "unpack it once"),
    (0, b"BZh", "a bzip2 file", "unpack it with bunzip2, or use gzip"),
    (0, b"\xfd7zXZ\x00", "an xz file", "unpack it with unxz, or use gzip"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd file", "unpack it with unzstd, or use gzip"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (0, b"Rar!", "a rar archive", _UNPACK),
    (0, b"SQLite format 3", "a SQLite database", _CONVERT),
    (0, b"\x89HDF", "an HDF5 file", _CONVERT),
    (0, b"\x93NUMPY", "an array of numpy", _CONVERT),
    (0, b"%PDF", "a PDF document", "give the annotation file"),
    (0, b"\x89PNG", "a PNG image", "give the annotation file; videos and images are named in its rows"),
    (0, b"\xff\xd8\xff", "a JPEG image", "give the annotation file; videos and images are named in its rows"),
    (4, b"ftyp", "an mp4 video", "give the annotation file; videos are named in its rows"),
    (0, b"\x1aE\xdf\xa3", "a Matroska or WebM video", "give the annotation file; videos are named in its rows"),
    (0, b"version https://git-lfs", "a pointer of Git LFS, not the file itself", "fetch it with `git lfs pull`"),
)
_ESCAPED = re.compile("[\udc80-\udcff]")


def load_text(path: Path) -> str:
    """The text of a file, unpacked if it is gzipped. Bytes that are not UTF-8 become U+DC80 to U+DCFF.

    `checked_line` refuses a line with such bytes.

    Raises:
        InputError: if it cannot be read, unpacks to too much, or is no text; the message says what it is.
    """
    data = _bytes(Path(path))
    for mark, encoding in _MARKS.items():
        if data.startswith(mark):
            try:
                return data[len(mark) :].decode(encoding, "surrogateescape" if encoding == "utf-8" else "strict")
            except UnicodeDecodeError as problem:
                raise InputError(f"{path}: cannot be read: {problem}") from None
    if kind := _kind(data):
        raise InputError(f"{path}: cannot be read: this is {kind}")
    return data.decode("utf-8", "surrogateescape")


def lines_of(text: str) -> Iterator[tuple[int, str]]:
    """Number and text of each line that is not empty, without white space and marks at its ends."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line := line.strip().lstrip("\ufeff"):
            yield number, line


def checked_line(line: str) -> str:
    """A line of `load_text`.

    Raises:
        InputError: if it holds bytes that are not UTF-8; the message names the first one.
    """
    if found := _ESCAPED.search(line):
        byte = ord(found[0]) - 0xDC00
        guess = f"{bytes([byte]).decode('cp1252', 'replace')!r} in Windows-1252?"
        raise InputError(f"byte 0x{byte:02x} at character {found.start() + 1} is not UTF-8 ({guess}): {_AS_UTF8}")
    return line


_AS_UTF8 = "save the file as UTF-8, for example with `iconv -f WINDOWS-1252 -t UTF-8`"


def load_json(path: Path) -> tuple[Any, list[str]]:
    """The value of a JSON file, and all keys that occur twice in one of its objects (the last value counts).

    Objects in lines are read as a list of them.

    Raises:
        InputError: naming line and column, if the file is not JSON or not UTF-8.
    """
    repeated_keys: list[str] = []

    def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value_by_key = dict(pairs)
        if len(value_by_key) != len(pairs):
            keys = [key for key, _ in pairs]
            repeated_keys.extend(sorted({key for key in keys if keys.count(key) > 1}))
        return value_by_key

    text = load_text(path)
    if _ESCAPED.search(text):
        for number, line in lines_of(text):
            try:
                checked_line(line)
            except InputError as problem:
                raise InputError(f"{path}: cannot be read: line {number}: {problem}") from None
    try:
        return json.loads(text, object_pairs_hook=object_of), repeated_keys
    except (ValueError, RecursionError) as problem:
        lines = _json_lines(text)
        if lines is None:
            raise InputError(f"{path}: not JSON: {problem}") from None
        return lines, []


def _json_lines(text: str) -> list[Any] | None:
    """The objects of a text with one in each line; None if a line is something else."""
    try:
        rows = [json.loads(line) for _, line in lines_of(text)]
    except (ValueError, RecursionError):
        return None
    return rows if len(rows) > 1 and all(isinstance(row, dict) for row in rows) else None


def _bytes(path: Path) -> bytes:
    """The bytes of a file, unpacked if it is gzipped."""
    if path.is_dir():
        raise InputError(f"{path}: cannot be read: this is a folder; give the annotation file in it")
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        if not packed:
            return path.read_bytes()
        allowed = max(UNPACKED_BYTES, UNPACKED_TIMES * path.stat().st_size)
        with gzip.open(path) as unpacked:
            data = unpacked.read(allowed + 1)
    except (OSError, EOFError, zlib.error) as problem:
        raise InputError(f"{path}: cannot be read: {problem}") from None
    if len(data) > allowed:
        raise InputError(
            f"{path}: cannot be read: it unpacks to more than {allowed >> 20} MiB, which is over {UNPACKED_TIMES} "
            "times its size; unpack it yourself if you trust it"
        )
    return data


def _kind(data: bytes) -> str:
    """What a file is and what to do with it, if it is no text in UTF-8; empty if it may be such a text."""
    if not data.strip():
        return "an empty file; give one with annotations"
    for start, magic, kind, advice in _KINDS:
        if data[start : start + len(magic)] == magic:
            return f"{kind}; {advice}"
    beginning = data[:4096]
    if re.match(rb"\s*<(!doctype html|html)", beginning, re.IGNORECASE):
        return "a web page, perhaps that of a failed download; download the file itself"
    if b"\x00" in beginning:
        if beginning.count(b"\x00") * 5 > len(beginning) * 2 and len(beginning.replace(b"\x00", b"").strip()) > 0:
            return "perhaps UTF-16 or UTF-32 without a byte-order mark; save it as UTF-8"
        return "no text (it holds zero bytes); give JSON, JSON lines, a table or text in UTF-8"
    return ""
