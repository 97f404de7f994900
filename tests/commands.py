"""Runs a command of the package as a user types it."""

import atexit
import functools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

#: One command at a time is forked; threads of a test that run several start processes.
_LOCK = threading.Lock()


def command(module, *arguments, timeout=280, **options):
    """Returns the finished process of `python -m module arguments`.

    It is forked from one that has imported TensorFlow, which saves the seconds of that. A command
    with another environment is a process of its own, as TensorFlow may read it when imported.
    """
    typed = [sys.executable, "-m", module, *map(str, arguments)]
    if options.keys() <= {"cwd"} and _LOCK.acquire(blocking=False):
        try:
            return _forked(typed, timeout, options.get("cwd"))
        finally:
            _LOCK.release()
    return subprocess.run(
        typed, capture_output=True, text=True, timeout=timeout, check=False, **options
    )


def _forked(typed, timeout, folder):
    parent = _parent()
    with tempfile.NamedTemporaryFile("r+") as out, tempfile.NamedTemporaryFile("r+") as err:
        line = {
            "module": typed[2],
            "arguments": typed[3:],
            "folder": str(folder or Path.cwd()),
            "environment": dict(os.environ),
            "stdout": out.name,
            "stderr": err.name,
        }
        print(json.dumps(line), file=parent.stdin, flush=True)
        process = int(parent.stdout.readline())
        if not select.select([parent.stdout], [], [], timeout)[0]:
            os.killpg(process, signal.SIGKILL)
            parent.stdout.readline()
            raise subprocess.TimeoutExpired(typed, timeout, out.read(), err.read())
        status = int(parent.stdout.readline())
        return subprocess.CompletedProcess(typed, status, out.read(), err.read())


@functools.cache
def _parent():
    parent = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "forking.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    # It ends with its input, and its processor time is then counted with that of the tests.
    atexit.register(lambda: (parent.stdin.close(), parent.wait()))
    return parent
