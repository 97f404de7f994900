"""Which names of the server, and which web pages, a request over HTTP may come with.

A page of another site can make a visitor's browser send requests to a server on the visitor's own
machine: with a name of its own that it lets point there (DNS rebinding), or by a plain POST. The
browser tells both, in Host and Origin. An address in digits points nowhere else, so it is no such
name.
"""

import ipaddress
import urllib.parse
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

import grpc

from serving.server.errors import ServingError

_READING = ("GET", "HEAD", "OPTIONS")

App = Callable[[Mapping[str, Any], Any, Any], Awaitable[None]]


class Names:
    """The names that a server answers to.

    Args:
        hosts: Names such as "models.example.org", without a port, whose pages are the server's own
            at any port, as a proxy before it may have another.
        address: What it listens on; a name, or an address in digits. localhost is one always.

    Example:
        >>> names = Names(["models.example.org"])
        >>> names.check("GET", "127.0.0.1:8501", None)
        >>> names.check("POST", "localhost:8501", "http://localhost:8501")
        >>> names.check("POST", "localhost:8501", "http://elsewhere")
        Traceback (most recent call last):
        ...
        serving.server.errors.ServingError: Requests from pages of http://elsewhere are refused
    """

    def __init__(self, hosts: Collection[str] = (), address: str = "localhost") -> None:
        self._hosts = frozenset(name.lower().rstrip(".") for name in hosts)
        self._own = self._hosts | {"localhost", address.lower()}

    def check(self, method: str, host: str | None, origin: str | None) -> None:
        """Refuses what a page of another site could have sent.

        Args:
            method: Of HTTP.
            host: The header Host; None where there is none, which no browser sends.
            origin: The header Origin, likewise.

        Raises:
            ServingError: PERMISSION_DENIED.
        """
        if host is not None and not self._is_own(_name(f"//{host}")):
            raise _denied(f"This server has no name {host[:100]!r}; see --allowed_hosts")
        if origin is None or method in _READING:
            return
        authority = urllib.parse.urlsplit(origin).netloc if "://" in origin else ""
        # The same port as well: another one is somebody else's.
        if not authority or (
            authority.lower() != (host or "").lower() and _name(origin) not in self._hosts
        ):
            raise _denied(f"Requests from pages of {origin[:100]} are refused")

    def _is_own(self, name: str) -> bool:
        if name in self._own:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _name(url: str) -> str:
    try:
        return (urllib.parse.urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return ""


def _denied(message: str) -> ServingError:
    return ServingError(grpc.StatusCode.PERMISSION_DENIED, message)
