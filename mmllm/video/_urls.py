"""Downloading a video from a URL, if the caller allows it: only public hosts, http or https, bounded in size and time.

FFmpeg never gets the URL. We look up the host's address, refuse it if it is not public, and connect to exactly that
address. Each redirection is checked again.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import tempfile
import time
from collections.abc import Collection
from contextlib import closing
from typing import IO, Any
from urllib.parse import SplitResult, urljoin, urlsplit

from mmllm.video.errors import LimitExceeded, VideoError, VideoOpenError, VideoTimeout
from mmllm.video.limits import VideoLimits

_MAX_REDIRECTIONS = 5
_SILENCE_S = 10.0
_IN_MEMORY_BYTES = 16 << 20


def is_url(source: Any) -> bool:
    """True for a text that begins with `http://` or `https://`."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def fetch(url: str, limits: VideoLimits, *, hosts: Collection[str] | None = None) -> IO[bytes]:
    """The file at a URL, as a temporary file that is deleted when it is closed.

    Args:
        url: its address.
        limits: `download_bytes` and `download_s`.
        hosts: the only names, in lower case, that are connected to, also after a redirection; None for all. An IP
            address among them need not be public.

    Raises:
        VideoOpenError: if the host is not public or not among `hosts`, or does not send the file.
        LimitExceeded: if the file is larger than `limits.download_bytes`.
        VideoTimeout: if the download takes longer than `limits.download_s`.
    """
    until = time.monotonic() + limits.download_s
    for _ in range(_MAX_REDIRECTIONS + 1):
        try:
            parts = urlsplit(url)
            with closing(_connection(url, parts, hosts)) as connection:
                path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
                connection.request("GET", path, headers={"Accept": "*/*", "User-Agent": "mmllm"})
                response = connection.getresponse()
                if response.status in (301, 302, 303, 307, 308):
                    url = urljoin(url, response.headers.get("Location", ""))
                    continue
                if response.status != 200:
                    raise VideoOpenError(f"{url}: the server answered {response.status} {response.reason}")
                return _downloaded(response, url, limits, until)
        except VideoError:
            raise
        except (OSError, http.client.HTTPException, ValueError) as problem:  # ValueError: such as a port above 65535
            raise VideoOpenError(f"{url}: {problem}") from None
    raise VideoOpenError(f"{url}: more than {_MAX_REDIRECTIONS} redirections")


def _downloaded(response: http.client.HTTPResponse, url: str, limits: VideoLimits, until: float) -> IO[bytes]:
    file: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES)  # noqa: SIM115
    try:
        length = 0
        while block := response.read(1 << 16):
            length += len(block)
            if length > limits.download_bytes:
                raise LimitExceeded(
                    f"{url}: larger than {limits.download_bytes >> 20} MiB: download it yourself",
                    in_python="or raise VideoLimits.download_bytes",
                )
            if time.monotonic() > until:
                raise VideoTimeout(
                    f"{url}: not downloaded within {limits.download_s:g} s: download it yourself",
                    in_python="or raise VideoLimits.download_s",
                )
            file.write(block)
    except BaseException:
        file.close()
        raise
    file.seek(0)
    return file


def _connection(url: str, parts: SplitResult, hosts: Collection[str] | None) -> http.client.HTTPConnection:
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise VideoOpenError(f"{url}: only http and https URLs are opened")
    if hosts is not None and parts.hostname not in hosts:
        raise VideoOpenError(f"{url}: {parts.hostname} is not among the hosts that are allowed")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    named = hosts is not None and _is_number(parts.hostname)  # whoever lists an IP address means it
    address = parts.hostname if named else public_address(url, parts.hostname, port)
    if parts.scheme == "http":
        connection = http.client.HTTPConnection(parts.hostname, port, timeout=_SILENCE_S)
        connection.sock = socket.create_connection((address, port), timeout=_SILENCE_S)
        return connection
    context = ssl.create_default_context()
    secure = http.client.HTTPSConnection(parts.hostname, port, timeout=_SILENCE_S, context=context)
    plain = socket.create_connection((address, port), timeout=_SILENCE_S)
    secure.sock = context.wrap_socket(plain, server_hostname=parts.hostname)
    return secure


def _is_number(host: str) -> bool:
    """Whether a host is an IP address itself."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def public_address(url: str, host: str, port: int) -> str:
    """The first IP address of a host, after all its addresses were checked to be public.

    Raises:
        VideoOpenError: if the host is unknown, or one of its addresses is private, local or reserved.
    """
    try:
        addresses = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError) as problem:
        raise VideoOpenError(f"{url}: {problem}") from None
    for address in addresses:
        number = ipaddress.ip_address(address.split("%")[0])
        if not number.is_global or number.is_multicast:
            raise VideoOpenError(f"{url}: {host} is {address}, which is not a public address")
    return addresses[0]
