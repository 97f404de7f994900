"""How many requests may be at work at the same time, over gRPC and REST together."""

import threading
from types import TracebackType

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

    def place(self) -> "_Place":
        """A context that holds a place.

        Raises:
            ServingError: On entering: RESOURCE_EXHAUSTED, if none is free.
        """
        return _Place(self)


class _Place:
    """One request at work."""

    __slots__ = ("_admission",)

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    def __enter__(self) -> None:
        admission = self._admission
        with admission._lock:
            if admission._at_work >= admission.limit:
                raise ServingError(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    f"The limit of {admission.limit} requests at work is reached; try again later.",
                )
            admission._at_work += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._admission._lock:
            self._admission._at_work -= 1
