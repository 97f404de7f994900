"""Starts commands from a process that has imported TensorFlow already, once for all tests.

Importing TensorFlow, Keras and the rest takes some five seconds of processor time, more than most
commands of the tests. Nothing is computed before the fork, so it loses no thread of TensorFlow.
Each line of standard input is JSON. A command has `module` (or "-c"), `arguments`, `folder`,
`environment`, the files `stdout` and `stderr`, whether it `draws` figures, and whether the `tiny`
backbone of `tiny_net` is in its table; the answer is its process id. `poll` has one; the answer is
the status with which it ended, or null while it runs.
What still runs at the end of input is killed.
"""

import contextlib
import functools
import importlib
import json
import os
import runpy
import signal
import sys
import traceback
from pathlib import Path
from typing import TextIO

import tiny_net

TESTS = str(Path(__file__).parent)
PACKAGES = (
    "cv2",
    "keras",
    "keras_tuner",
    "matplotlib.figure",
    "sklearn.metrics",
    "statsmodels.stats.proportion",
    "tensorflow_datasets",
)
#: Of this package.
SHARED = (
    "replication.comparison.steps",
    "replication.fields.whole_fields",
    "replication.report.page",
    "replication.runs.fitting",
    "finetune.search.tuner",
    "serving.model.assemble",
)


def main() -> None:
    """Imports what commands import, then forks for each line until there is no more."""
    # Commands must not find the tests' own modules.
    sys.path[0] = str(Path.cwd())
    imported()
    _serve()


def fork() -> tuple[TextIO, TextIO, int]:
    """Forks what `main` does off this process, which has computed nothing yet.

    Returns:
        Where its questions are written, where its answers are read, and its number.
    """
    asked, questions = os.pipe()
    answers, answered = os.pipe()
    if process := os.fork():
        os.close(asked)
        os.close(answered)
        return os.fdopen(questions, "w"), os.fdopen(answers), process
    try:
        for number, file in enumerate((asked, answered)):
            os.dup2(file, number)
        # Whoever waits for the end of this process's pipes waits for this process alone.
        for file in [*Path("/proc/self/fd").iterdir()]:
            with contextlib.suppress(FileNotFoundError):
                if int(file.name) > 2 and str(file.readlink()).startswith(("pipe:", "socket:")):
                    os.close(int(file.name))
        sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, "w")
        sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace")
        # Commands must not find the tests' own modules.
        sys.path[:] = [str(Path.cwd()), *(each for each in sys.path if each != TESTS)]
        _serve()
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
    finally:
        os._exit(1)


@functools.cache
def imported() -> None:
    """Imports what commands share; a module with flags would add them to every command."""
    from tfds_pap import commands

    commands.prepare_tensorflow()
    for module in (*PACKAGES, *SHARED):
        importlib.import_module(module)


def _serve() -> None:
    running = set()
    while line := sys.stdin.readline():
        # Where tests run in one process alone, it has imported TensorFlow and no more.
        imported()
        question = json.loads(line)
        if "poll" in question:
            answer = _ended(question["poll"], running)
        elif not (answer := os.fork()):
            _run(question)
        else:
            running.add(answer)
        print(json.dumps(answer), flush=True)
    for process in running:
        os.killpg(process, signal.SIGKILL)
    os._exit(0)


def _ended(process: int, running: set[int]) -> int | None:
    found, status = os.waitpid(process, os.WNOHANG)
    if not found:
        return None
    running.remove(process)
    return os.waitstatus_to_exitcode(status)


def _undrawn(height, draw, form="svg", **_) -> bytes:
    """A picture with nothing on it, for whoever reads one back."""
    if form == "svg":
        return b"<svg></svg>"
    import cv2
    import numpy as np

    return cv2.imencode(".png", np.zeros((1, 1, 3), np.uint8))[1].tobytes()


def _run(command: dict) -> None:
    """Becomes the command; never returns."""
    os.setsid()
    # A suite that a shell runs in the background ignores it, and so would its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(command["folder"])
    os.environ.clear()
    os.environ.update(command["environment"])
    nowhere = os.open(os.devnull, os.O_RDONLY)
    append = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    files = [os.open(command[name], append) for name in ("stdout", "stderr")]
    for number, file in enumerate((nowhere, *files)):
        os.dup2(file, number)
    # What `python -m` and `python -c` do, with the arguments where they put them.
    sys.argv = [command["module"], *command["arguments"]]
    sys.path[0] = str(Path.cwd())
    status = 1
    try:
        if not command["draws"]:
            from replication.drawing import figures

            figures.drawn = _undrawn
        if command["tiny"]:
            tiny_net.register()
        if command["module"] == "-c":
            exec(sys.argv.pop(1), {"__name__": "__main__"})
        else:
            runpy.run_module(command["module"], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
