"""Reads the bodies of HTTP requests: not too long, not for ever, not too many bytes at a time."""

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc

from serving.server.errors import ServingError, invalid

#: Seconds in which a body must have arrived.
_SECONDS = 60.0

#: Bytes that come out of a packed one, and beyond that, out of the gzip that a body may be: flat
#: images as lists of numbers have fifty.
_UNPACKED_A_BYTE, _UNPACKED_FREE = 100, 2 * 2**20

#: Bodies of the greatest length that may be on their way at the same time.
_TOGETHER = 16


class TooLongError(Exception):
    """A body above the limit, of which no more is read; it is answered with 413."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"The body of the request is too long, expected {limit} bytes at most.")


class Bodies:
    """Reads bodies for one server; used from one event loop.

    Args:
        limit: Bytes that a body may have.
        seconds: In which it must have arrived.
        together: How many of the greatest length may be on their way.

    Attributes:
        limit: Bytes that a body may have.
    """

    def __init__(self, limit: int, *, seconds: float = _SECONDS, together: int = _TOGETHER) -> None:
        self.limit = limit
        self._seconds = seconds
        self._budget = limit * together
        self._on_their_way = 0

    async def read(
        self, scope: Mapping[str, Any], receive: Callable[[], Awaitable[Mapping[str, Any]]]
    ) -> bytes | None:
        """Reads the body of one request; unpacks it where Content-Encoding is gzip.

        Args:
            scope: Of ASGI.
            receive: Of ASGI.

        Returns:
            The body; None if the client went away.

        Raises:
            TooLongError: It is longer than the limit, packed or unpacked, or says so; or unpacks to
                far more than it has.
            ServingError: DEADLINE_EXCEEDED if it does not arrive in time, RESOURCE_EXHAUSTED if too
                many bytes are on their way, INVALID_ARGUMENT if it is called gzip and is none.
        """
        headers = dict(scope["headers"])
        declared = headers.get(b"content-length", b"")
        is_packed = headers.get(b"content-encoding", b"").strip().lower() in (b"gzip", b"x-gzip")
        if declared.isdigit() and int(declared) > self.limit:
            raise TooLongError(self.limit)
        body = bytearray()
        try:
            async with asyncio.timeout(self._seconds):
                while True:
                    event = await receive()
                    if event["type"] == "http.disconnect":
                        return None
                    part = event.get("body", b"")
                    body += part
                    self._on_their_way += len(part)
                    if len(body) > self.limit:
                        raise TooLongError(self.limit)
                    if self._on_their_way > self._budget:
                        raise ServingError(
                            grpc.StatusCode.RESOURCE_EXHAUSTED,
                            "Too many requests are on their way; try again later.",
                        )
                    if not event.get("more_body"):
                        break
        except TimeoutError:
            raise ServingError(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                f"The body of the request did not arrive within {self._seconds:g} seconds.",
            ) from None
        else:
            return await asyncio.to_thread(self._unpacked, body) if is_packed else bytes(body)
        finally:
            self._on_their_way -= len(body)

    def _unpacked(self, body: bytearray) -> bytes:
        stream = zlib.decompressobj(16 + zlib.MAX_WBITS)
        limit = min(self.limit, _UNPACKED_FREE + _UNPACKED_A_BYTE * len(body))
        try:
            unpacked = stream.decompress(body, limit + 1)
        except zlib.error as error:
            raise invalid(f"The body of the request is no gzip: {error}") from None
        if len(unpacked) > limit:
            raise TooLongError(limit)
        if not stream.eof:
            raise invalid("The body of the request is no gzip: it ends before its end")
        return unpacked
