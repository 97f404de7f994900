"""Workers of a search on this machine: the same command, several times, around one chief."""

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

from tfds_pap import gpus
from tfds_pap.errors import PapError

_ADDRESS = "127.0.0.1"

#: Set in a worker whose standard input is a pipe that its chief holds open.
_PIPE = "FINETUNE_CHIEF_HOLDS_STDIN"


class LocalWorkers:
    """Starts workers as processes, and makes this process their chief. Used as a context.

    Args:
        count: Number of workers.
        directory: Of the search; each worker's output goes to a file in it.
    """

    def __init__(self, count: int, directory: Path) -> None:
        self._count = count
        self._directory = directory
        self._processes: list[subprocess.Popen] = []

    def __enter__(self) -> "LocalWorkers":
        # KerasTuner reads its place in the cluster from these.
        chief = {
            "KERASTUNER_TUNER_ID": "chief",
            "KERASTUNER_ORACLE_IP": _ADDRESS,
            "KERASTUNER_ORACLE_PORT": str(_free_port()),
        }
        os.environ.update(chief)
        threads = str(max(1, (os.cpu_count() or 1) // self._count))
        for number in range(self._count):
            environment = {
                **os.environ,
                "KERASTUNER_TUNER_ID": f"worker_{number}",
                _PIPE: "1",
                # Workers that each take every core get in one another's way.
                "TF_NUM_INTRAOP_THREADS": threads,
                "TF_NUM_INTEROP_THREADS": threads,
                **gpus.in_turn(number),
            }
            with self._log(number).open("wb") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "finetune.search", *sys.argv[1:]],
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            self._processes.append(process)
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._processes:
            if error[0] is not None:
                process.terminate()
            process.wait()
            if process.stdin:
                process.stdin.close()

    def check(self) -> None:
        """Tells whether there is still one that works.

        Raises:
            PapError: If every worker ended with an error.
        """
        if all(process.poll() for process in self._processes):
            lines = self._log(0).read_text(errors="replace").strip().splitlines()
            raise PapError(
                f"every worker ended: {lines[-1] if lines else 'without a word'} (see "
                f"{self._log(0)})"
            )

    def _log(self, number: int) -> Path:
        return self._directory / f"worker_{number}.log"


def end_with_chief() -> None:
    """Ends a worker of this machine as soon as its chief is gone, even by `kill -9`.

    It would go on with a trial that the same command, given again, runs as well.
    """
    if _PIPE not in os.environ:
        return

    def wait() -> None:
        # The kernel closes the other end when the chief ends, however it does.
        sys.stdin.buffer.read()
        os._exit(1)

    threading.Thread(target=wait, name="end with chief", daemon=True).start()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_ADDRESS, 0))
        return probe.getsockname()[1]
