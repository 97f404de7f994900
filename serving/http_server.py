"""Runs an ASGI application over HTTP in a thread of its own: uvicorn, with limits for clients."""

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http import httptools_impl

from serving import listening

#: Seconds in which a client must have sent a request completely, and until its first byte.
REQUEST_SECONDS = 60.0

#: Bytes that a request's line and headers may have.
HEADER_BYTES = 64 * 1024

_KEEP_ALIVE_SECONDS = 75


class HttpServer:
    """Serves an application until it is stopped.

    Args:
        app: The ASGI application.
        host: Address to listen on.
        port: 0 takes a free one.
        tls: Files of the certificate chain and of the private key in PEM; None for none.
        drain_seconds: How long requests may go on once the server is to stop.

    Attributes:
        port: Where it listens.

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
    ) -> None:
        certificate, key = tls or (None, None)
        config = uvicorn.Config(
            app,
            http=_LimitedProtocol,
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


class _LimitedProtocol(httptools_impl.HttpToolsProtocol):
    """Ends connections on which no complete request arrives in time, or endless headers do."""

    _deadline: asyncio.TimerHandle | None = None
    _header_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_deadline()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._header_bytes = 0
        self._expect_request()

    def on_url(self, url: bytes) -> None:
        self._count(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(name + value)
        super().on_header(name, value)

    def on_message_complete(self) -> None:
        self._end_deadline()
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
