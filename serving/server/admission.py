"""How many requests may be at work at the same time, over gRPC and REST together."""

import contextlib
import threading
from collections.abc import Iterator

import grpc

from serving.server.errors import ServingError


class Admission:
    """Counts the requests at work and refuses those beyond a limit.

    Nobody waits here: batching has a queue, and a client that is told at once can try elsewhere.

    Args:
        limit: Requests that may be at work at the same time.

    Example:
        >>> admission = Admission(limit=1)
        >>> with admission.place():
        ...     admission.at_work
        1
    """

    def __init__(self, limit: int = 128) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._at_work = 0

    @property
    def at_work(self) -> int:
        """Requests that hold a place."""
        return self._at_work

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Holds a place for a `with` block.

        Raises:
            ServingError: On entering: RESOURCE_EXHAUSTED, if none is free.
        """
        with self._lock:
            if self._at_work >= self.limit:
                raise ServingError(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    f"The limit of {self.limit} requests at work is reached; try again later.",
                )
            self._at_work += 1
        try:
            yield
        finally:
            with self._lock:
                self._at_work -= 1
