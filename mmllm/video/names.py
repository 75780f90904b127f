"""Paths as people write them: the same name in another Unicode form is found, for others the nearest name is shown."""

from __future__ import annotations

import difflib
import itertools
import os
import re
import unicodedata
from pathlib import Path
from urllib.parse import unquote

_MOST_NAMES = 20_000
"""A folder with more names is not searched to the end."""


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
    names = _names(folder)
    key = _key(name)
    same = [other for other in names if _key(other) == key] or [
        other for other in names if _key(os.path.splitext(other)[0]) == _key(os.path.splitext(name)[0])
    ]
    if not same:
        close = difflib.get_close_matches(key, [_key(other) for other in names], n=1, cutoff=0.7)
        same = [other for other in names if close and _key(other) == close[0]]
    return f"; did you mean {folder / same[0]}?" if same else ""


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
