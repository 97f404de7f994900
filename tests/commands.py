"""Runs a command of the package as a user types it."""

import atexit
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import forking

#: Questions to the process that forks, and their answers, come in pairs.
_LOCK = threading.Lock()

#: By backend: what `fork` left for `_parent`.
_FORKED = {}


def fork():
    """Forks the process that starts commands off this one, before it computes anything."""
    import keras

    # Elsewhere a fork of what has threads is not safe, or nothing says which files are open.
    if sys.platform == "linux":
        _FORKED[keras.backend.backend()] = forking.fork()


def command(module, *arguments, timeout=280, **options):
    """Returns the finished process of `python -m module arguments`, or of `python -c` with "-c".

    It is forked from one that has imported TensorFlow, which saves the seconds of that; see
    `start` for the options. A command with another `env` is a process of its own, as TensorFlow
    may read that.
    """
    typed = [sys.executable, *([] if module == "-c" else ["-m"]), module, *map(str, arguments)]
    if "env" in options:
        return subprocess.run(
            typed, capture_output=True, text=True, timeout=timeout, check=False, **options
        )
    with tempfile.NamedTemporaryFile("r+") as out, tempfile.NamedTemporaryFile("r+") as err:
        places = {"stdout": out.name, "stderr": err.name}
        started = start(module, *arguments, **places, **options)
        try:
            status = started.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(typed, timeout, out.read(), err.read()) from None
        return subprocess.CompletedProcess(typed, status, out.read(), err.read())


def start(
    module,
    *arguments,
    stdout=os.devnull,
    stderr=os.devnull,
    extra=None,
    cwd=None,
    draws=True,
    backend="tensorflow",
    tiny=False,
):
    """Starts `python -m module arguments` as `command` does.

    Args:
        module: Or "-c".
        *arguments: Of the command.
        stdout: A file, to which it appends.
        stderr: Likewise.
        extra: Variables of its environment, which nothing reads when imported.
        cwd: Its folder.
        draws: Whether its figures are drawn, which takes most of a page's time, or empty.
        backend: What Keras computes with; each has a process of its own that forks.
        tiny: Whether it has the networks of `tiny_net`: one more backbone, a smaller stage 2.
    """
    line = {
        "module": str(module),
        "arguments": [*map(str, arguments)],
        "folder": str(cwd or Path.cwd()),
        "environment": {**os.environ, "KERAS_BACKEND": backend, **(extra or {})},
        "stdout": str(stdout),
        "stderr": str(stderr),
        "draws": draws,
        "tiny": tiny,
    }
    return Started(_ask(line, backend), backend)


class Started:
    """A forked command, with what the tests need of `subprocess.Popen`."""

    def __init__(self, pid, backend):
        self.pid, self.returncode, self._backend = pid, None, backend

    def poll(self):
        if self.returncode is None:
            self.returncode = _ask({"poll": self.pid}, self._backend)
        return self.returncode

    def wait(self, timeout=280):
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.01)
        return self.returncode

    def send_signal(self, number):
        # Its number is its own until `poll` has told its end.
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def terminate(self):
        self.send_signal(signal.SIGTERM)


def _ask(question, backend):
    with _LOCK:
        questions, answers = _parent(backend)
        print(json.dumps(question), file=questions, flush=True)
        return json.loads(answers.readline())


@functools.cache
def _parent(backend):
    if backend in _FORKED:
        questions, answers, process = _FORKED[backend]
        ended = functools.partial(os.waitpid, process, 0)
    else:
        parent = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "forking.py")],
            env={**os.environ, "KERAS_BACKEND": backend},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        questions, answers, ended = parent.stdin, parent.stdout, parent.wait
    # It ends with its input, and its processor time is then counted with that of the tests.
    atexit.register(lambda: (questions.close(), ended()))
    return questions, answers
