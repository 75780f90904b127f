"""Where an image or a video is: a local path, `file://`, or the bytes themselves in a `data:` address or in base64."""

from __future__ import annotations

import base64
import binascii
import io
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes, urlsplit
from urllib.request import url2pathname

from mmllm.errors import InputError
from mmllm.times.stamps import shortened

MOST_BYTES = 512 << 20
"""Bytes of one medium inside an address."""
_LONGEST_NAME = 255
"""Characters of a file's name; a longer text without a slash is no file."""


def resolved(source: Any) -> Any:
    """A source with its address read: bytes for `data:` and base64, a path for `file://`, everything else unchanged.

    A text is taken for base64 only if it is too long for a file's name, or under the key "base64".

    Raises:
        InputError: if the address is too large or cannot be decoded.
    """
    if not isinstance(source, str):
        return source
    scheme = source[:8].lower()
    if scheme.startswith("data:"):
        return _of_data(source)
    if scheme.startswith("file://"):
        parts = urlsplit(source)
        if parts.netloc not in ("", "localhost"):
            raise InputError(f"{shortened(source)}: file:// names a file of this machine, so no host may stand in it")
        return url2pathname(unquote(parts.path) if "%" in parts.path else parts.path)
    if len(source) > _LONGEST_NAME and not re.search(r"[^A-Za-z0-9+/=\s_-]", source) and not _exists(source):
        return from_base64(source)
    return source


def from_base64(text: Any) -> bytes:
    """The bytes of a medium in base64, in the ordinary alphabet or in that for addresses.

    Raises:
        InputError: if it is too large or no base64.
    """
    if isinstance(text, str) and text[:5].lower() == "data:":
        return _of_data(text)
    if isinstance(text, (bytes, bytearray)):
        text = bytes(text).decode("latin-1")
    if not isinstance(text, str):
        raise InputError(f"base64 must be a text, not {type(text).__name__}")
    _require_small(len(text) * 3 // 4)
    letters = re.sub(r"\s+", "", text).translate(str.maketrans("-_", "+/")).rstrip("=")
    try:
        data = base64.b64decode(letters + "=" * (-len(letters) % 4), validate=True)
    except (binascii.Error, ValueError) as problem:
        raise InputError(f"{shortened(text)}: not base64: {problem}") from None
    if not data:
        raise InputError("base64 of no bytes: there is no medium in it")
    return data


def readable(source: Any) -> Any:
    """A path or an open binary file of what `resolved` gave, for libraries that open files."""
    return io.BytesIO(source) if isinstance(source, (bytes, bytearray, memoryview)) else source


def _of_data(address: str) -> bytes:
    """The bytes of `data:[type][;base64],content`."""
    header, comma, content = address[5:].partition(",")
    if not comma:
        raise InputError(f"{shortened(address)}: a data address is data:TYPE;base64,CONTENT; there is no comma")
    _require_small(len(content) * 3 // 4)
    if header.lower().replace(" ", "").endswith(";base64"):
        return from_base64(unquote(content) if "%" in content else content)
    return unquote_to_bytes(content)


def _require_small(size: int) -> None:
    if size > MOST_BYTES:
        raise InputError(f"a medium of {size >> 20} MiB inside an address; allowed are {MOST_BYTES >> 20}: give a file")


def _exists(name: str) -> bool:
    try:
        return Path(name).exists()
    except (OSError, ValueError):
        return False
