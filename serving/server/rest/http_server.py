"""Runs an ASGI application over HTTP in a thread of its own: uvicorn, with limits for clients."""

import asyncio
import functools
import threading
import time
from pathlib import Path
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http import httptools_impl

from serving.server import connections, listening

#: Seconds in which a client must have sent a request completely, and until its first byte.
REQUEST_SECONDS = 60.0

#: Bytes that a request's line and headers may have; and those between two parts of its body: sizes
#: and extensions of chunks, and the trailer.
HEADER_BYTES = 64 * 1024

#: Bytes around each byte of a body: one that comes in chunks of one byte has five.
_BYTES_AROUND = 8

#: Bytes that are parsed before they are counted.
_AT_ONCE = 16 * 1024

_KEEP_ALIVE_SECONDS = 75


class HttpServer:
    """Serves an application until it is stopped.

    Args:
        app: The ASGI application.
        host: Address to listen on.
        port: 0 takes a free one.
        tls: Files of the certificate chain and of the private key in PEM; None for none.
        drain_seconds: How long requests may go on once the server is to stop.
        max_connections: Open at the same time; for a new one beyond them the one that has been idle
            for longest is closed, or the new one, where none is idle.

    Attributes:
        port: Where it listens.
        closed_for_others: Connections that were closed because there were too many.

    Raises:
        OSError: If it cannot listen there.
    """

    def __init__(
        self,
        app: Any,
        host: str,
        port: int,
        *,
        tls: tuple[Path, Path] | None = None,
        drain_seconds: float = 30.0,
        max_connections: int = connections.WANTED,
    ) -> None:
        certificate, key = tls or (None, None)
        self._max_connections = max_connections
        #: Open connections, the one that has been idle for longest first.
        self._open: dict[_LimitedProtocol, None] = {}
        self.closed_for_others = 0
        config = uvicorn.Config(
            app,
            # Called as a class would be.
            http=cast(type[asyncio.Protocol], functools.partial(_LimitedProtocol, self)),
            backlog=connections.BACKLOG,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=max(1, round(drain_seconds)),
            ssl_certfile=certificate,
            ssl_keyfile=key,
        )
        self._socket = listening.bound(host, port)
        self.port: int = self._socket.getsockname()[1]
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="http", daemon=True
        )

    @property
    def open_connections(self) -> int:
        """How many there are now."""
        return len(self._open)

    def start(self) -> None:
        """Answers from now on."""
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.005)

    def stop(self) -> None:
        """Accepts no more connections and waits for the requests at work."""
        self._server.should_exit = True
        if self._thread.ident is not None:
            self._thread.join()
        self._socket.close()

    # -- In the server's own thread ----------------------------------------------------------------

    def opened(self, connection: "_LimitedProtocol") -> None:
        """Counts a connection; makes place for it where there are too many."""
        if len(self._open) >= self._max_connections:
            # Whoever has sent a request and waits for its answer stays.
            idle = next((each for each in self._open if each.is_idle()), connection)
            self.closed_for_others += 1
            self.closed(idle)
            idle.transport.abort()
            if idle is connection:
                return
        self._open[connection] = None

    def used(self, connection: "_LimitedProtocol") -> None:
        """Puts a connection behind those that have been idle for longer."""
        if connection in self._open:
            del self._open[connection]
            self._open[connection] = None

    def closed(self, connection: "_LimitedProtocol") -> None:
        """Counts it no more."""
        self._open.pop(connection, None)


class _LimitedProtocol(httptools_impl.HttpToolsProtocol):
    """Ends connections on which no complete request arrives in time, or anything without end."""

    def __init__(self, server: HttpServer, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._server = server
        self._deadline: asyncio.TimerHandle | None = None
        self._header_bytes = 0
        #: Bytes since the last part of a body, since the request began, and those of its body.
        self._unread = self._received = self._body_bytes = 0

    def connection_made(  # type: ignore[override]  # uvicorn narrows it, too
        self, transport: asyncio.Transport
    ) -> None:
        super().connection_made(transport)
        self._expect_request()
        self._server.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_deadline()
        self._server.closed(self)
        super().connection_lost(exc)

    def is_idle(self) -> bool:
        """Whether no complete request waits for its answer."""
        return self._deadline is not None or self.cycle is None or self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        # Before they are parsed, as the parser gathers a line for as long as it goes on.
        for start in range(0, len(data), _AT_ONCE):
            if self.transport.is_closing():
                return
            part = data[start : start + _AT_ONCE]
            self._unread += len(part)
            self._received += len(part)
            super().data_received(part)
            around = self._received - self._body_bytes
            if self._unread > HEADER_BYTES + _AT_ONCE or (
                around > HEADER_BYTES + _AT_ONCE + _BYTES_AROUND * self._body_bytes
            ):
                self.send_400_response("Too many bytes outside of the body.")

    def on_body(self, body: bytes) -> None:
        self._unread = 0
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._header_bytes = self._unread = self._received = self._body_bytes = 0
        self._expect_request()

    def on_url(self, url: bytes) -> None:
        self._count(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(name + value)
        super().on_header(name, value)

    def on_message_complete(self) -> None:
        self._end_deadline()
        self._unread = self._received = self._body_bytes = 0
        self._server.used(self)
        super().on_message_complete()

    def _count(self, part: bytes) -> None:
        self._header_bytes += len(part)
        if self._header_bytes > HEADER_BYTES:
            # The parser passes it on as an invalid request: 400, and the connection is closed.
            raise ValueError("too long")

    def _expect_request(self) -> None:
        self._end_deadline()
        self._deadline = self.loop.call_later(REQUEST_SECONDS, self.transport.abort)

    def _end_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
