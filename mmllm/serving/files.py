"""Files that clients have sent, in the process's private folder: each upload, and once what came inside requests."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mmllm.app.uploads import bytes_in
from mmllm.serving.limits import ServeLimits
from mmllm.serving.refusals import Refused

FILE_ID = re.compile(r"file-[0-9a-f]{24}")
_BLOCK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """A file that a client has sent."""

    id: str
    """`file-` and 24 hexadecimal digits: of its digest for one that came inside a request, else its own."""
    digest: str
    """SHA-256 of its content, in hexadecimal digits."""
    path: Path
    bytes: int
    created_s: int
    """Seconds since 1970."""
    age_s: int
    """Seconds after which it is removed."""
    name: str | None = None
    """As the client calls it; None for one that came inside a request, which is in no list."""
    purpose: str = "user_data"

    def to_json(self) -> dict[str, Any]:
        """The file as OpenAI's clients read it."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.bytes,
            "created_at": self.created_s,
            "expires_at": self.created_s + self.age_s,
            "filename": self.name,
            "purpose": self.purpose,
            "status": "processed",
        }


class FileStore:
    """The files of all clients; several threads may use it.

    Args:
        folder: of the process. Files that are being written stand in it, whole ones in a folder below.
        limits: of one file and of all.
    """

    def __init__(self, folder: Path, limits: ServeLimits) -> None:
        self.folder, self.limits = folder, limits
        self.whole = folder / "files"
        self.whole.mkdir()
        self._files: dict[str, StoredFile] = {}
        self._lock = threading.Lock()

    def keep(self, source: IO[bytes], name: str | None = None, purpose: str = "user_data") -> StoredFile:
        """Stores what can be read from `source`: an upload under an id of its own, other content once.

        Args:
            source: the content, from its beginning.
            name: as the client calls it; None for one that came inside a request.
            purpose: as the client says.

        Raises:
            Refused: if it is too large, empty, or there is no room.
        """
        part, digest, size = self.folder / uuid.uuid4().hex, hashlib.sha256(), 0
        try:
            with part.open("xb") as file:
                while block := source.read(_BLOCK):
                    size += len(block)
                    if size > self.limits.upload_mb * 1_000_000:
                        raise Refused(413, f"a file may have {self.limits.upload_mb} MB", "too_large")
                    digest.update(block)
                    file.write(block)
            if not size:
                raise Refused(400, "the file is empty", "bad_media")
            self._make_room(size)
            number = digest.hexdigest()
            own = _id_of(number if name is None else uuid.uuid4().hex)
            stored = StoredFile(
                id=own,
                digest=number,
                path=self.whole / own,
                bytes=size,
                created_s=int(time.time()),
                age_s=self.limits.upload_age_s,
                name=name,
                purpose=purpose,
            )
            with self._lock:
                os.replace(part, stored.path)
                return self._files.setdefault(own, stored)
        finally:
            part.unlink(missing_ok=True)

    def keep_bytes(self, content: bytes) -> StoredFile:
        """Stores what came inside a request; nothing is written if it is there already.

        Raises:
            Refused: as `keep` does.
        """
        stored = self._files.get(_id_of(hashlib.sha256(content).hexdigest()))
        return stored if stored is not None and stored.path.is_file() else self.keep(io.BytesIO(content))

    def find(self, name: str) -> StoredFile:
        """The file of an id.

        Raises:
            Refused: if there is none, or it was removed because of its age.
        """
        stored = self._files.get(name)
        if stored is None or not stored.path.is_file():
            raise Refused(404, f"there is no file {name[:40]!r}; files are removed after a while", "file_not_found")
        return stored

    def uploaded(self) -> list[StoredFile]:
        """The files that were uploaded, oldest first."""
        return [stored for stored in list(self._files.values()) if stored.name is not None and stored.path.is_file()]

    def remove(self, name: str) -> None:
        """Removes an uploaded file.

        Raises:
            Refused: if there is none.
        """
        stored = self.find(name)
        with self._lock:
            self._files.pop(name, None)
            stored.path.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        """Removes the oldest files that came inside requests, until another of that size fits."""
        most = self.limits.all_uploads_mb * 1_000_000
        with self._lock:
            excess = bytes_in(self.whole) + size - most
            for stored in [stored for stored in self._files.values() if stored.name is None]:
                if excess <= 0:
                    break
                excess -= stored.bytes
                del self._files[stored.id]
                with contextlib.suppress(OSError):
                    stored.path.unlink()
        if excess > 0:
            raise Refused(503, "there is no room for more files: they are removed after a while", "no_room")


def _id_of(digits: str) -> str:
    """The id of a file, by its digest or other hexadecimal digits."""
    return f"file-{digits[:24]}"
