"""Merges concurrent requests into batches, in the words of TensorFlow Serving's batching.

Requests for one signature, whose inputs differ in nothing but the number of rows, wait together
until the batch is full or `batch_timeout_micros` have passed, and run as one.
Better than there: an input that makes a merged batch fail fails its own request only.
"""

import collections
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping

import grpc
import numpy as np

from serving.server.batching_config import BatchingParameters
from serving.server.errors import ServingError, invalid

Arrays = Mapping[str, np.ndarray]
Run = Callable[[str, Arrays, float | None], dict[str, np.ndarray]]

_log = logging.getLogger(__name__)


class Batcher:
    """Batches the calls of one function from many threads.

    Args:
        run: Called with signature, inputs and seconds (or None), from `num_batch_threads` threads;
            returns all outputs.
        parameters: Sizes, times and threads.

    Example:
        >>> def double(key, arrays, timeout):
        ...     return {"y": 2 * arrays["x"]}
        >>> batcher = Batcher(double, BatchingParameters(max_batch_size=8))
        >>> batcher.run("double", {"x": np.array([1.0, 2.0])})
        {'y': array([2., 4.])}
        >>> batcher.close()
    """

    def __init__(self, run: Run, parameters: BatchingParameters) -> None:
        self._run = run
        self._parameters = parameters
        self._timeout = parameters.batch_timeout_micros / 1e6
        #: Guards everything below; notified when there is something to look at.
        self._work = threading.Condition()
        #: Batches that wait, oldest first; only the last of a queue still takes requests.
        self._queues: dict[tuple, collections.deque[_Batch]] = {}
        self._closed = False
        for number in range(parameters.num_batch_threads):
            threading.Thread(target=self._loop, name=f"batch-{number}", daemon=True).start()

    def run(self, key: str, arrays: Arrays, timeout: float | None = None) -> dict[str, np.ndarray]:
        """Answers one request, as `run` would have alone.

        Args:
            key: The signature.
            arrays: Inputs by name, all with the same number of rows.
            timeout: Seconds after which the request is given up, waiting included.

        Raises:
            ServingError: INVALID_ARGUMENT for inputs that cannot be batched, UNAVAILABLE if too
                many batches wait, DEADLINE_EXCEEDED, FAILED_PRECONDITION if an output has no row
                for every input row, and what `run` raises for this request.
        """
        rows = self._rows(arrays)
        if rows == 0:
            return self._run(key, arrays, timeout)
        task = _Task(arrays, rows, None if timeout is None else time.monotonic() + timeout)
        group = (key, tuple((name, a.shape[1:]) for name, a in arrays.items()))
        with self._work:
            self._enqueue(group, task)
        if not task.done.acquire(timeout=-1 if timeout is None else max(0.0, timeout)):
            with self._work:
                if task.answer is None and task.error is None:
                    self._drop(group, task)
                    task.error = _too_late()
        if task.answer is None:
            raise task.error or _too_late()
        return task.answer

    def close(self) -> None:
        """Ends the threads after the batches that they run; requests that wait are cancelled."""
        with self._work:
            self._closed = True
            waiting = [task for q in self._queues.values() for batch in q for task in batch.tasks]
            self._queues.clear()
            self._work.notify_all()
        for task in waiting:
            task.fail(ServingError(grpc.StatusCode.CANCELLED, "Session has been closed."))

    # -- The queue; with the lock held -----------------------------------------------------------

    def _rows(self, arrays: Arrays) -> int:
        if not arrays:
            raise invalid("Batching Run() must have at least one input tensor")
        if any(array.ndim == 0 for array in arrays.values()):
            raise invalid("Batching Run() input tensors must have at least one dimension")
        sizes = {len(array) for array in arrays.values()}
        if len(sizes) > 1:
            raise invalid("Batching Run() input tensors must have equal 0th-dimension size")
        (rows,) = sizes
        if rows > self._parameters.max_batch_size:
            raise invalid(
                f"Task size {rows} is larger than maximum input batch size "
                f"{self._parameters.max_batch_size}"
            )
        return rows

    def _enqueue(self, group: tuple, task: "_Task") -> None:
        if self._closed:
            raise ServingError(grpc.StatusCode.CANCELLED, "Session has been closed.")
        waiting = self._queues.setdefault(group, collections.deque())
        most = self._parameters.max_batch_size
        if not waiting or waiting[-1].rows + task.rows > most:
            if len(waiting) >= self._parameters.max_enqueued_batches:
                raise ServingError(
                    grpc.StatusCode.UNAVAILABLE,
                    "The batch scheduling queue to which this task was submitted is full",
                )
            waiting.append(_Batch(group, time.monotonic() + self._timeout))
            # Somebody has to watch its time, or the time of the batch that it closed is up.
            self._work.notify()
        batch = waiting[-1]
        batch.tasks.append(task)
        batch.rows += task.rows
        if batch.rows == most and len(batch.tasks) > 1:
            self._work.notify()

    def _drop(self, group: tuple, task: "_Task") -> None:
        """Takes a request out of the queue, if it still waits there."""
        waiting = self._queues.get(group, collections.deque())
        for batch in waiting:
            if task in batch.tasks:
                batch.tasks.remove(task)
                batch.rows -= task.rows
                if not batch.tasks:
                    waiting.remove(batch)
                break
        if not waiting:
            self._queues.pop(group, None)

    def _next(self) -> "_Batch | None":
        """The batch whose time came first; waits for one, None at the end."""
        with self._work:
            while not self._closed:
                heads = [(waiting[0], len(waiting) > 1) for waiting in self._queues.values()]
                now = time.monotonic()
                ready = [
                    batch
                    for batch, closed in heads
                    if closed or batch.rows == self._parameters.max_batch_size or batch.due <= now
                ]
                if ready:
                    batch = min(ready, key=lambda b: b.due)
                    waiting = self._queues[batch.group]
                    waiting.popleft()
                    if not waiting:
                        del self._queues[batch.group]
                    return batch
                first = min((batch.due for batch, _ in heads), default=None)
                self._work.wait(None if first is None else first - now)
        return None

    # -- The batch threads -----------------------------------------------------------------------

    def _loop(self) -> None:
        while (batch := self._next()) is not None:
            key, _ = batch.group
            try:
                self._process(key, batch.tasks)
            except Exception as error:
                # Whatever happens, nobody waits for ever and the thread lives.
                _log.exception("batch of signature %s", key)
                for task in batch.tasks:
                    task.fail(
                        ServingError(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}")
                    )

    def _process(self, key: str, tasks: list["_Task"]) -> None:
        """Answers all tasks; halves a batch that fails until what fails is alone."""
        now = time.monotonic()
        for task in tasks:
            if task.deadline is not None and task.deadline <= now:
                task.fail(_too_late())
        tasks = [task for task in tasks if task.error is None]
        if not tasks:
            return
        # The most patient one says how long; who has no deadline waits as long as it takes.
        latest = max(math.inf if task.deadline is None else task.deadline for task in tasks)
        timeout = None if latest == math.inf else latest - now
        rows = sum(task.rows for task in tasks)
        size = next((s for s in self._parameters.allowed_batch_sizes if s >= rows), rows)
        merged = {
            name: _stacked([task.arrays[name] for task in tasks], size - rows)
            for name in tasks[0].arrays
        }
        try:
            results = self._run(key, merged, timeout)
        except ServingError as error:
            if len(tasks) == 1:
                tasks[0].fail(error)
            else:
                half = len(tasks) // 2
                self._process(key, tasks[:half])
                self._process(key, tasks[half:])
            return
        misfit = _misfit(results, size)
        start = 0
        for task in tasks:
            if misfit:
                task.fail(ServingError(grpc.StatusCode.FAILED_PRECONDITION, misfit))
                continue
            end = start + task.rows
            task.succeed({name: array[start:end] for name, array in results.items()})
            start = end


class _Task:
    """One request that waits for its answer."""

    __slots__ = ("answer", "arrays", "deadline", "done", "error", "rows")

    def __init__(self, arrays: Arrays, rows: int, deadline: float | None) -> None:
        self.arrays = arrays
        self.rows = rows
        self.deadline = deadline
        self.answer: dict[str, np.ndarray] | None = None
        self.error: ServingError | None = None
        # A bare lock, released when there is an answer: a third of an Event's cost.
        self.done = threading.Lock()
        self.done.acquire()

    def succeed(self, answer: dict[str, np.ndarray]) -> None:
        if self.answer is None and self.error is None:
            self.answer = answer
            self.done.release()

    def fail(self, error: ServingError) -> None:
        if self.answer is None and self.error is None:
            self.error = error
            self.done.release()


class _Batch:
    """Requests that will run together."""

    __slots__ = ("due", "group", "rows", "tasks")

    def __init__(self, group: tuple, due: float) -> None:
        self.group = group
        self.due = due
        self.tasks: list[_Task] = []
        self.rows = 0


def _stacked(arrays: list[np.ndarray], padding: int) -> np.ndarray:
    if padding:
        # The first row is one that the graph accepts.
        arrays = [*arrays, np.repeat(arrays[0][:1], padding, axis=0)]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _misfit(results: Mapping[str, np.ndarray], size: int) -> str:
    """What keeps the outputs from being cut into requests; empty if nothing does."""
    if any(np.ndim(array) == 0 for array in results.values()):
        return "Batched output tensor has 0 dimensions"
    if any(len(array) != size for array in results.values()):
        return (
            "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension "
            "sizes of the input tensors"
        )
    return ""


def _too_late() -> ServingError:
    return ServingError(
        grpc.StatusCode.DEADLINE_EXCEEDED,
        "Run() timeout exceeded while waiting in batching queue",
    )
