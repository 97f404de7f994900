"""Runs work that cannot be cancelled, so that nobody waits for it past a deadline.

TensorFlow cancels a run between two operations, and decoding an image is a single one. Such runs go
to a bounded number of threads of their own: a request leaves when its time is up, what it left
behind goes on, is counted, and holds one of these threads until it ends.
"""

import queue
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import grpc

from serving.server.errors import ServingError


class Counts(NamedTuple):
    """What is going on, and what has been.

    Attributes:
        running: Calls at work.
        overdue: Those of them whose requests have left.
        overdue_ever: Calls that were still at work when their requests left, since the start.
        unstarted_ever: Calls whose requests left before a thread was free.
    """

    running: int
    overdue: int
    overdue_ever: int
    unstarted_ever: int


class DeadlinePool:
    """Threads for calls that may outlive their deadline.

    Args:
        threads: Calls at work at the same time, those included that nobody waits for any more.

    Example:
        >>> pool = DeadlinePool(threads=2)
        >>> pool.run(lambda: 6 * 7, timeout=1.0)
        42
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._waiting: queue.SimpleQueue[_Call] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._running = self._overdue = self._overdue_ever = self._unstarted_ever = 0
        for number in range(threads):
            # Daemons: the end of the process does not wait for what cannot be stopped.
            threading.Thread(target=self._work, name=f"images-{number}", daemon=True).start()

    def counts(self) -> Counts:
        """Returns what the metrics show."""
        with self._lock:
            return Counts(self._running, self._overdue, self._overdue_ever, self._unstarted_ever)

    def run(self, function: Callable[[], Any], timeout: float | None) -> Any:
        """Returns what a function returns, or raises what it raises.

        Args:
            function: Called in another thread, or not at all if none is free in time.
            timeout: Seconds; None waits as long as it takes.

        Raises:
            ServingError: DEADLINE_EXCEEDED; UNAVAILABLE at once, if every thread is held by work
                that nobody waits for.
        """
        with self._lock:
            if self._overdue >= self.threads:
                raise ServingError(
                    grpc.StatusCode.UNAVAILABLE,
                    "Images that take too long hold every thread; try again later.",
                )
        call = _Call(function)
        self._waiting.put(call)
        if not call.done.acquire(timeout=-1 if timeout is None else max(0.0, timeout)):
            self._give_up(call)
        if call.error is not None:
            raise call.error
        return call.answer

    def _give_up(self, call: "_Call") -> None:
        with self._lock:
            if call.ended:
                return
            call.given_up = True
            if call.started:
                self._overdue += 1
                self._overdue_ever += 1
            else:
                self._unstarted_ever += 1
            call.error = ServingError(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")

    def _work(self) -> None:
        while True:
            call = self._waiting.get()
            with self._lock:
                if call.given_up:
                    continue
                call.started = True
                self._running += 1
            answer, failure = None, None
            try:
                answer = call.function()
            except BaseException as error:
                # The request's own thread raises it.
                failure = error
            with self._lock:
                self._running -= 1
                call.ended = True
                if call.given_up:
                    self._overdue -= 1
                else:
                    call.answer, call.error = answer, failure
            call.done.release()
            # Nothing of a request is kept while the thread waits for the next.
            del call, answer, failure


class _Call:
    """One call and how it ended."""

    __slots__ = ("answer", "done", "ended", "error", "function", "given_up", "started")

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function
        self.started = self.ended = self.given_up = False
        self.answer: Any = None
        self.error: BaseException | None = None
        # A bare lock, released at the end: a third of an Event's cost.
        self.done = threading.Lock()
        self.done.acquire()
