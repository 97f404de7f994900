"""Blocks of work over the cores of this machine, or over many machines: Dask's scheduler.

A block writes what it computes, by rename, where a process that works alone would have written
it; what comes back to the caller is small. So a killed worker, scheduler or caller costs the
blocks that were under way, and the same command goes on with the rest.

Dask (`distributed`) is imported where a cluster is asked for, and nowhere else.
"""

import asyncio
import contextlib
import importlib.metadata
import importlib.util
import logging
import os
import pickle
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent import futures
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfds_pap import commands, gpus
from tfds_pap.errors import PapError

if TYPE_CHECKING:
    import distributed

#: The value of --cluster that starts workers on this machine.
LOCAL = "local"

#: What Dask understands as a scheduler's address.
_ADDRESS = re.compile(r"(tcp|tls|ws|wss|ucx)://[^/\s]+:\d+/?")

#: Within this many seconds a scheduler answers, or is not there.
_TIMEOUT = 5

#: Seconds after which a scheduler that went away in the middle is given up.
_GONE = 10

#: Blocks that wait at the scheduler for each thread of a worker; the rest wait here.
_WAITING = 4
#: And at least so many, as workers may join.
_LEAST_WAITING = 64

#: What must be the same in every process for the same bytes.
_PACKAGES = ("keras", "numpy", "tensorflow")


def fault(value: str) -> str:
    """Returns why a value cannot be one of --cluster, in words; "" where it can.

    Args:
        value: "local", the address of a scheduler, or its scheduler file.

    Example:
        >>> fault("tcp://10.0.0.1:8786"), fault("nowhere.json")
        ('', 'expected local, an address such as tcp://HOST:8786, or a scheduler file')
    """
    if value == LOCAL or _ADDRESS.fullmatch(value) or Path(value).expanduser().is_file():
        return ""
    return "expected local, an address such as tcp://HOST:8786, or a scheduler file"


@contextlib.contextmanager
def connected(where: str, *, workers: int | None = None) -> Iterator["distributed.Client"]:
    """Starts workers on this machine, or joins a scheduler.

    Args:
        where: "local", the address of a scheduler, or its scheduler file.
        workers: Of "local": processes, each with one thread; None takes one a core.

    Raises:
        PapError: If Dask is not installed, or no scheduler answers; within seconds.

    Example:
        >>> with connected("local", workers=2) as client:
        ...     dict(outcomes(client, max, [(1, 2), (3, 4)]))
        {0: 2, 1: 4}
    """
    if importlib.util.find_spec("distributed") is None:
        raise PapError("--cluster needs Dask: pip install 'pap-two-stage[scale]'")
    import dask
    import distributed

    # What matters of it is raised, in one line.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    dask.config.set({"distributed.comm.timeouts.connect": _GONE, "distributed.logging": {}})
    with contextlib.ExitStack() as stack:
        if where == LOCAL:
            # Dask sets what workers inherit (threads, malloc) in this process, and leaves it there.
            stack.callback(_restore_environment, dict(os.environ))
            stack.callback(logging.getLogger("asyncio").setLevel, logging.WARNING)
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)
            cluster = distributed.LocalCluster(
                n_workers=workers or os.cpu_count() or 1,
                threads_per_worker=1,
                # Blocks are bounded; a worker above Dask's own limit would be paused for ever.
                memory_limit=0,
                # Without bokeh no dashboard is there; the default port may be another cluster's.
                dashboard_address="127.0.0.1:0",
                silence_logs=logging.CRITICAL,
            )
            yield stack.enter_context(distributed.Client(stack.enter_context(cluster)))
            return
        path = Path(where).expanduser()
        try:
            if path.is_file():
                client = distributed.Client(scheduler_file=str(path), timeout=_TIMEOUT)
            else:
                client = distributed.Client(where, timeout=_TIMEOUT)
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise PapError(f"--cluster={where}: no scheduler answers ({reason})") from None
        yield stack.enter_context(client)


def _restore_environment(before: Mapping[str, str]) -> None:
    import dask

    inherited = dask.config.get("distributed.nanny.pre-spawn-environ")
    for name in (*inherited, "PYTHONHASHSEED", "__DASK_PARENT_PID"):
        os.environ.pop(name, None)
        if name in before:
            os.environ[name] = before[name]


def words(client: "distributed.Client") -> str:
    """Returns the line that a command prints before it computes on a cluster.

    Args:
        client: From `connected`.
    """
    about = client.scheduler_info(n_workers=-1)
    threads = sum(worker["nthreads"] for worker in about["workers"].values())
    shown = f"; dashboard {client.dashboard_link}" if importlib.util.find_spec("bokeh") else ""
    count = len(about["workers"])
    return f"Cluster {about['address']}: {count} workers, {threads} threads{shown}"


class Queue:
    """Calls on a cluster, more of which may be put while the first are taken out.

    Args:
        client: From `connected`.
        most: Of `put`, how many may be under way; `full` tells. None: a few for each thread.

    Example:
        >>> with connected("local", workers=1) as client:
        ...     queue = Queue(client)
        ...     queue.put("first", max, 1, 2)
        ...     for name, outcome in queue.outcomes():
        ...         print(name, outcome)
        ...         if name == "first":
        ...             queue.put("second", min, outcome, 7)
        first 2
        second 2
    """

    def __init__(self, client: "distributed.Client", most: int | None = None) -> None:
        import distributed

        threads = sum(client.nthreads().values())
        self._client, self._names = client, dict[distributed.Future, Any]()
        self._most = most or max(_LEAST_WAITING, _WAITING * threads)
        self._completed = distributed.as_completed(raise_errors=False)
        self._versions = _versions()

    @property
    def full(self) -> bool:
        """Whether what is put now would only wait."""
        return len(self._names) >= self._most

    def put(self, name: Any, function: Callable[..., Any], *arguments: Any) -> None:
        """Has a worker call a function.

        Args:
            name: What its outcome is told by.
            function: Of a module that workers can import.
            *arguments: What can be pickled, and means the same on every machine.
        """
        # Unpickled by the worker when its process is prepared: what a function's module imports
        # must find TensorFlow as this package wants it.
        call = _Call(pickle.dumps((function, arguments)))
        future = self._client.submit(_call, call, self._versions, pure=False)
        self._names[future] = name
        self._completed.add(future)

    def outcomes(self) -> Generator[tuple[Any, Any], None, None]:
        """Yields name and outcome as they end: what the function returned, or its `PapError`.

        Raises:
            PapError: If the scheduler went away, or a block took its workers with it.
            Exception: Whatever else a function raised.
        """
        try:
            while self._names:
                future = next(self._completed)
                name = self._names.pop(future)
                outcome = self._outcome(future)
                if isinstance(outcome, BaseException) and not isinstance(outcome, PapError):
                    raise outcome
                yield name, outcome
                future.release()
        finally:
            # An interrupted command leaves nothing for others' workers to do.
            gone = (OSError, RuntimeError, futures.CancelledError, asyncio.CancelledError)
            with contextlib.suppress(*gone):
                self._client.cancel(list(self._names), force=True)

    def _outcome(self, future: "distributed.Future") -> Any:
        """What a call returned or raised."""
        import distributed

        try:
            if future.status == "error":
                return _mended(future.exception())
            if future.status != "cancelled":
                return future.result()
        except (
            # Of the event loop, of a future, and of the connection.
            asyncio.CancelledError,
            futures.CancelledError,
            distributed.comm.CommClosedError,
        ):
            pass
        raise PapError(
            "the scheduler of --cluster went away; blocks that were done are kept, and the same "
            "command goes on with the rest"
        )


def outcomes(
    client: "distributed.Client", function: Callable[..., Any], blocks: Iterable[tuple]
) -> Generator[tuple[int, Any], None, None]:
    """Yields the number of each block and what the function returns for it, as they end.

    Args:
        client: From `connected`.
        function: Called with what a block holds; see `Queue.put`.
        blocks: Arguments of each call; drawn as workers need them.

    Raises:
        PapError: The first of a block, and as `Queue` does.
    """
    queue, waiting = Queue(client), enumerate(blocks)

    def fill() -> None:
        while not queue.full and (block := next(waiting, None)) is not None:
            queue.put(block[0], function, *block[1])

    fill()
    for number, outcome in queue.outcomes():
        if isinstance(outcome, PapError):
            raise outcome
        yield number, outcome
        fill()


def _mended(error: BaseException) -> BaseException:
    """One line for what whoever runs the cluster can mend."""
    import distributed

    if isinstance(error, distributed.scheduler.KilledWorker):
        return PapError(
            f"--cluster: a block took {error.allowed_failures + 1} workers with it, the last one "
            f"{error.last_worker.address}: give them more memory, and look at their logs"
        )
    if isinstance(error, ModuleNotFoundError):
        return PapError(f"--cluster: a worker lacks a module ({error}): install this package there")
    return error


def _versions() -> dict[str, str]:
    """What must be the same in every process for the same bytes."""
    backend = {"KERAS_BACKEND": os.environ.get("KERAS_BACKEND") or "tensorflow"}
    return backend | {name: importlib.metadata.version(name) for name in _PACKAGES}


def see_one_gpu(worker: Any) -> None:
    """Gives this process one of the machine's GPUs, in turn.

    Args:
        worker: Its name: a number where `connected` started it; others have devices of their own.
    """
    # A second call would choose among the one that is left.
    if isinstance(worker, int) and len(gpus.visible()) > 1:
        os.environ.update(gpus.in_turn(worker))


class _Call(bytes):
    """A pickled call, which may hold a URL with a secret: Dask logs the arguments of what fails."""

    def __repr__(self) -> str:
        return f"<a call of {len(self)} bytes>"


def _call(call: bytes, versions: dict[str, str]) -> Any:
    """What a worker runs: prepares its process once, then calls."""
    import distributed

    worker = distributed.get_worker()
    for name, version in _versions().items():
        if versions[name] != version:
            raise PapError(
                f"--cluster: worker {worker.address} has {name} {version}, this process "
                f"{versions[name]}: their bytes would differ"
            )
    # As many threads as Dask gives it: another number could give other last digits, and workers of
    # one machine would take one another's cores.
    threads = str(worker.state.nthreads)
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", threads)
    os.environ.setdefault("TF_NUM_INTEROP_THREADS", threads)
    see_one_gpu(worker.name)
    commands.prepare_tensorflow()
    function, arguments = pickle.loads(call)
    return function(*arguments)
