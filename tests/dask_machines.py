"""A Dask cluster on loopback whose processes can be killed one by one."""

import os
import signal
import time

from commands import start


class Cluster:
    """A scheduler and some workers of one thread, each a process of its own; see `start`."""

    def __init__(self, folder, workers, tiny=False):
        self.file = folder / "scheduler.json"
        shared = ["--no-dashboard", f"--scheduler-file={self.file}"]
        self.scheduler = start(
            "distributed.cli.dask_scheduler", "--host=127.0.0.1", "--port=0", *shared
        )
        alone = ("--nthreads=1", "--no-nanny", "--memory-limit=0", *shared)
        self.workers = [
            start("distributed.cli.dask_worker", *alone, tiny=tiny) for _ in range(workers)
        ]

    def kill(self, process):
        os.kill(process.pid, signal.SIGKILL)
        process.wait()

    def __enter__(self):
        end = time.monotonic() + 60
        while not self.file.exists() and time.monotonic() < end:
            time.sleep(0.05)
        return self

    def __exit__(self, *_):
        for process in (*self.workers, self.scheduler):
            if process.poll() is None:
                self.kill(process)


def kill_when(machines, process, count, files):
    """Kills a process as soon as `files()` is `count` long; returns how long it was then."""
    while len(files()) < count:
        time.sleep(0.002)
    machines.kill(process)
    return len(files())
