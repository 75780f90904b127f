"""The cells of a spreadsheet (.xlsx) as texts. It is a zip archive of XML, so no library of spreadsheets is needed.

Read are texts, numbers, truth values and results of formulas of the first sheet; formats, dates and links are not.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from mmllm.datasets.text_files import UNPACKED_BYTES, UNPACKED_TIMES
from mmllm.errors import InputError

_MAIN = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_PLACE = re.compile(r"([A-Z]{1,3})[0-9]+")
_ESCAPED = re.compile("_x([0-9A-Fa-f]{4})_")


def sheet_rows(path: Path) -> list[dict[str, str]]:
    """The rows below the first one of the first sheet, by the names in the first one. Empty cells are missing.

    Raises:
        InputError: if the file is no spreadsheet of this kind, or unpacks to too much.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.getinfo(name) for name in archive.namelist()}
            allowed = max(UNPACKED_BYTES, UNPACKED_TIMES * path.stat().st_size)
            if sum(info.file_size for info in parts.values()) > allowed:
                raise InputError(
                    f"{path}: it unpacks to more than {allowed >> 20} MiB; unpack it yourself if you trust it"
                )
            sheets = sorted((name for name in parts if re.fullmatch(r"xl/worksheets/sheet\d+\.xml", name)), key=_number)
            if not sheets:
                raise InputError(f"{path}: it has no sheet")
            shared = _texts(archive.read("xl/sharedStrings.xml")) if "xl/sharedStrings.xml" in parts else []
            rows = list(_rows(archive.read(sheets[0]), shared))
    except (OSError, zipfile.BadZipFile, ElementTree.ParseError, RuntimeError, IndexError, ValueError) as problem:
        if isinstance(problem, InputError):
            raise
        raise InputError(f"{path}: not a spreadsheet (.xlsx): {problem}") from None
    if not rows:
        raise InputError(f"{path}: its first sheet is empty")
    names, *below = rows
    return [{names[column]: text for column, text in row.items() if column in names} for row in below]


def _number(name: str) -> int:
    return int(re.sub(r"\D", "", name))


def _parsed(data: bytes) -> ElementTree.Element:
    """The root of a part; one that declares entities was made to fill the memory."""
    if b"<!DOCTYPE" in data[:4096] or b"<!ENTITY" in data:
        raise ValueError("its XML declares a document type")
    return ElementTree.fromstring(data)


def _texts(data: bytes) -> list[str]:
    """The shared texts."""
    return [_text(item) for item in _parsed(data).iter(f"{_MAIN}si")]


def _text(item: ElementTree.Element) -> str:
    """The text of an item, in one piece or in several with their own format; hints of pronunciation are left out."""
    pieces = [*item.findall(f"{_MAIN}t"), *item.findall(f"{_MAIN}r/{_MAIN}t")]
    text = "".join(piece.text or "" for piece in pieces)
    return _ESCAPED.sub(lambda match: chr(int(match[1], 16)), text)


def _rows(data: bytes, shared: list[str]) -> Iterator[dict[str, str]]:
    """The texts of each row that has any, by column (A, B, ...)."""
    for row in _parsed(data).iter(f"{_MAIN}row"):
        cells: dict[str, str] = {}
        for cell in row.iter(f"{_MAIN}c"):
            place = _PLACE.fullmatch(cell.get("r", ""))
            if place is None:
                raise ValueError("a cell has no place")
            if text := _cell(cell, shared):
                cells[place[1]] = text
        if cells:
            yield cells


def _cell(cell: ElementTree.Element, shared: list[str]) -> str:
    kind = cell.get("t", "n")
    if kind == "inlineStr":
        inline = cell.find(f"{_MAIN}is")
        return "" if inline is None else _text(inline)
    value = cell.findtext(f"{_MAIN}v", "")
    if kind == "e" or not value:  # an error such as #N/A
        return ""
    return shared[int(value)] if kind == "s" else value
