"""Room for uploads: the announced length is reserved before a byte is taken, and abandoned uploads give it back."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

STALL_S = 20.0
"""Seconds by the clock without a byte after which an upload ends."""
_ABANDONED_S, _ABANDONED_BYTES_PER_S = 1.0, 16_000
"""An upload that is slower than this gives way when others find no room."""
_TRIES, _PAUSE_S = 6, 0.4
"""How often and after which seconds room is looked for again."""


@dataclass(eq=False)
class Upload:
    """An upload in progress."""

    announced: int
    """Bytes that its request has said, or may have."""
    received: int = 0
    began_s: float = field(default_factory=time.monotonic)
    given_up: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it has to give its room to others."""

    @property
    def abandoned(self) -> bool:
        """Whether it hardly goes on."""
        seconds = time.monotonic() - self.began_s
        return seconds > _ABANDONED_S and self.received < _ABANDONED_BYTES_PER_S * seconds


class Room:
    """The bytes that all uploads together may have.

    Args:
        folder: where they are stored.
        most_bytes: of all files in it.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self.folder, self.most_bytes = folder, most_bytes
        self.uploads: set[Upload] = set()

    async def reserved(self, announced: int) -> Upload | None:
        """An upload with its room reserved; None if there is no room. `release` it at its end."""
        for number in range(_TRIES):
            stored = await asyncio.to_thread(bytes_in, self.folder)
            reserved = sum(max(0, upload.announced - upload.received) for upload in self.uploads)
            missing = stored + reserved + announced - self.most_bytes
            if missing <= 0:
                upload = Upload(announced)
                self.uploads.add(upload)
                return upload
            abandoned = sorted((upload for upload in self.uploads if upload.abandoned), key=lambda one: one.began_s)
            for upload in abandoned:
                if missing > 0:
                    missing -= upload.announced
                    upload.given_up.set()
            if not self.uploads:  # the files themselves fill the folder
                return None
            if number < _TRIES - 1:
                await asyncio.sleep(_PAUSE_S)
        return None

    def release(self, upload: Upload) -> None:
        """Gives back what an upload has reserved; its file counts by its own size."""
        self.uploads.discard(upload)


def announced_length(headers: Mapping[str, str], otherwise: int) -> int:
    """Bytes of a request's body as its header says; `otherwise` if it says nothing usable."""
    text = headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else otherwise


def bytes_in(folder: Path) -> int:
    """Bytes of all files in a folder; files that disappear meanwhile count as 0."""
    return sum(_sizes(folder))


def _sizes(folder: Path) -> Iterator[int]:
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            yield path.lstat().st_size
