"""What browsers may do with the demo and the server: only own pages talk to them, under their own address.

A page of another site can send requests to a server on the visitor's machine, and a name of another site can be made to
point at it. So hosts, origins and the browser's own notes on a request are checked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_FOREIGN = "requests from pages of other sites are refused"
_READING = ("GET", "HEAD", "OPTIONS")

ANSWER_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "; ".join([
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",  # Gradio's page has scripts inside, and makes some
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' blob:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    ]),
}  # fmt: skip
"""Headers of every answer: nothing is loaded from elsewhere, no type is guessed, no other page shows this one."""


@dataclass
class BrowserRules:
    """Which hosts and origins are served.

    Args:
        host: the address at which the server listens.
        allowed_hosts: further names of this server, such as that of a proxy in front of it.
        name: what is served, for messages.
    """

    host: str = "127.0.0.1"
    allowed_hosts: Iterable[str] = ()
    name: str = "the demo"
    names: set[str] = field(init=False)
    """All names under which the demo is served."""
    any_name: bool = field(init=False)
    """Whether other names are served, too: machines of a network know the server by names of their own."""

    def __post_init__(self) -> None:
        self.trusted = {_plain(name) for name in self.allowed_hosts}
        self.names = {*LOOPBACK, _plain(self.host), *self.trusted}
        self.any_name = self.host not in LOOPBACK and not self.trusted

    def allow(self, name: str) -> None:
        """Serves another name, such as that of a public link."""
        self.trusted.add(_plain(name))
        self.names.add(_plain(name))

    def refused(self, method: str, headers: Mapping[str, str]) -> tuple[int, str] | None:
        """Status and reason if a request is refused; None if it is not.

        Args:
            method: of the request.
            headers: by their names in lower case.
        """
        problem = self.unknown_host(headers) or self.foreign_page(method, headers)
        return None if problem is None else (403, problem)

    def unknown_host(self, headers: Mapping[str, str]) -> str | None:
        """Why a request under this name is refused; None if it is not."""
        host = headers.get("host", "")
        if host and not self.any_name and _name_of(host) not in self.names:
            return f"{self.name} is not served as {host[:80]!r}; start it with --allowed-host to allow this name"
        return None

    def foreign_page(self, method: str, headers: Mapping[str, str]) -> str | None:
        """Why a request of a page of another site is refused; None if it is not."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if origin is not None and not self._is_own(origin, host):
            return _FOREIGN
        site = headers.get("sec-fetch-site", "none")
        opened = method in _READING and headers.get("sec-fetch-mode") == "navigate"  # a link to the page
        if site not in ("same-origin", "none") and not opened and origin is None:
            return _FOREIGN
        return None

    def _is_own(self, origin: str, host: str) -> bool:
        """Whether an origin is this server's page, as the visitor sees it."""
        try:
            place = urlsplit(origin).netloc.lower()
        except ValueError:
            return False
        return bool(place) and (place == host.lower() or _name_of(place) in self.trusted)


def _name_of(host: str) -> str:
    """The name in a Host header, without the port."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host


def _plain(name: str) -> str:
    """A name as it was given, without brackets and in lower case."""
    return name.strip().strip("[]").lower()
