"""Addresses of media in requests: inside the request, uploaded before, or at a host that the server's list allows."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection
from urllib.parse import urlsplit

from mmllm.serving.files import FILE_ID, FileStore, StoredFile
from mmllm.serving.question import MediaPart
from mmllm.serving.refusals import Refused
from mmllm.video._urls import fetch, is_url
from mmllm.video.limits import VideoLimits
from mmllm.video.still_images import is_still_image

_ALLOWED = "data: with base64, the id of an uploaded file, or http(s) of a host that the server allows"


class MediaAddresses:
    """Turns addresses into files of the store.

    Args:
        files: the store.
        limits: of a download.
        hosts: names from which media are downloaded; none by default.
    """

    def __init__(self, files: FileStore, limits: VideoLimits, hosts: Collection[str] = ()) -> None:
        self.files, self.limits, self.hosts = files, limits, frozenset(name.lower() for name in hosts)

    def stored(self, part: MediaPart) -> StoredFile:
        """The file of a part's address.

        Raises:
            Refused: if the address may not be read, or holds nothing that can be.
            VideoError: if a download fails.
        """
        address, place = part.address, part.place
        if address[:5].lower() == "data:":
            return self._inline(address, place)
        if FILE_ID.fullmatch(address):
            return self.files.find(address)
        if is_url(address):
            return self._downloaded(address, place)
        raise Refused(400, f"{place}: this address is not read here; allowed are {_ALLOWED}", "address_refused", place)

    def is_foreign(self, part: MediaPart) -> bool:
        """Whether a part's file has to be downloaded."""
        return is_url(part.address)

    def kind(self, part: MediaPart, stored: StoredFile) -> str:
        """Whether a part is a video or an image; a file is told by its content."""
        if part.kind != "file":
            return part.kind
        return "image" if is_still_image(stored.path) else "video"

    def _inline(self, address: str, place: str) -> StoredFile:
        header, comma, data = address[5:].partition(",")
        if not comma or not header.lower().replace(" ", "").endswith(";base64"):
            raise Refused(400, f"{place}: a data: address must be data:TYPE;base64,CONTENT", "bad_media", place)
        try:
            content = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            raise Refused(400, f"{place}: the content of its data: address is no base64", "bad_media", place) from None
        return self.files.keep_bytes(content)

    def _downloaded(self, address: str, place: str) -> StoredFile:
        try:
            host = (urlsplit(address).hostname or "").lower()
        except ValueError:
            host = ""
        if host not in self.hosts:
            message = f"{place}: nothing is downloaded from {host[:80]!r}; allowed are {_ALLOWED}"
            raise Refused(400, message, "address_refused", place)
        with fetch(address, self.limits, hosts=self.hosts) as content:
            return self.files.keep(content)
