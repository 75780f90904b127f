"""Paths as people write them: the same name in another Unicode form is found, for others the nearest name is shown."""

from __future__ import annotations

import difflib
import itertools
import os
import re
import unicodedata
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

_MOST_NAMES = 20_000
"""A folder with more names is not searched to the end."""
_MOST_COMPARED = 2_000
"""Among more names, only those that differ in case, blanks, suffix and the like are looked for."""


def is_address(name: str) -> bool:
    """True for a name such as `https://example.org/clip.mp4`, which is no path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", name) is not None


def existing(path: str | os.PathLike[str]) -> Path | None:
    """The path, or the same path with its names in another Unicode form (composed or decomposed); None if neither is.

    macOS stores names decomposed, most other systems composed. A name can be copied from one to the other.
    """
    path = Path(path)
    if os.path.lexists(path):
        return path
    if str(path).isascii():
        return None
    for form in ("NFC", "NFD"):
        changed = Path(unicodedata.normalize(form, str(path)))
        if os.path.lexists(changed):
            return changed
    return _by_parts(path)


def _by_parts(path: Path) -> Path | None:
    """The path whose names each are equal to those of `path` in composed form."""
    folder = Path(path.anchor) if path.is_absolute() else Path()
    for part in path.parts[1 if path.is_absolute() else 0 :]:
        composed = unicodedata.normalize("NFC", part)
        equal = [name for name in _names(folder) if unicodedata.normalize("NFC", name) == composed]
        if not equal and not os.path.lexists(folder / part):
            return None
        folder = folder / (part if part in equal or not equal else equal[0])
    return folder


def nearest(path: str | os.PathLike[str]) -> str:
    """The end of a message about a missing path: the nearest name in its folder, or the folder that is missing."""
    text = os.fspath(path)
    for variant in dict.fromkeys((unquote(text), text.strip(" \t\r\n'\""), os.path.expanduser(text), _slashed(text))):
        if variant != text and variant and os.path.exists(variant):
            return f"; did you mean {variant}?"
    folder, name = Path(_slashed(text)).parent, Path(_slashed(text)).name
    missing = [parent for parent in (folder, *folder.parents) if not parent.is_dir()]
    if missing:
        return f"; there is no folder {missing[-1]}{_suggestion(missing[-1].parent, missing[-1].name)}"
    return _suggestion(folder, name)


def _suggestion(folder: Path, name: str) -> str:
    try:
        changed = folder.stat().st_mtime_ns
    except OSError:
        return ""
    by_key = _names_by_key(folder, changed)
    stem = _key(os.path.splitext(name)[0])
    near = by_key.get(_key(name)) or by_key.get(stem)
    if near is None and len(by_key) <= _MOST_COMPARED:
        close = difflib.get_close_matches(_key(name), by_key, n=1, cutoff=0.7)
        near = by_key[close[0]] if close else None
    return f"; did you mean {folder / near}?" if near else ""


@lru_cache(maxsize=16)
def _names_by_key(folder: Path, changed: int) -> dict[str, str]:
    """Key of each name in a folder, with and without its suffix -> the name.

    Args:
        folder: the folder.
        changed: its modification time; another one makes the cache forget.
    """
    del changed
    names = _names(folder)
    return {_key(os.path.splitext(name)[0]): name for name in names} | {_key(name): name for name in names}


def _key(name: str) -> str:
    """A name without what people get wrong: case, blanks, underscores, quotes, %-codes, forms of letters."""
    return re.sub(r"[\s_'\"-]+", "", unicodedata.normalize("NFKC", unquote(name)).casefold())


def _slashed(text: str) -> str:
    return text.replace("\\", "/") if os.sep == "/" else text


def _names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in itertools.islice(entries, _MOST_NAMES) if entry.name[0] != ".")
    except OSError:
        return []
