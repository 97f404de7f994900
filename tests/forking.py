"""Starts commands from a process that has imported TensorFlow already, once for all tests.

Importing TensorFlow, Keras and the rest takes some five seconds of processor time, more than most
commands of the tests. Nothing is computed before the fork, so it loses no thread of TensorFlow.
Each line of standard input is a command in JSON: `module`, `arguments`, `folder`, `environment` and
the files `stdout` and `stderr`. The answer is a line with its process id, and one with its status.
"""

import json
import os
import runpy
import sys
import traceback
from pathlib import Path


def main() -> None:
    """Imports what commands import, then forks for each line until there is no more."""
    # Commands must not find the tests' own modules.
    sys.path[0] = str(Path.cwd())
    from tfds_pap import commands

    commands.prepare_tensorflow()
    import cv2  # noqa: F401
    import keras  # noqa: F401
    import keras_tuner  # noqa: F401
    import matplotlib.figure  # noqa: F401
    import sklearn.metrics  # noqa: F401
    import statsmodels.stats.proportion  # noqa: F401
    import tensorflow_datasets  # noqa: F401

    while line := sys.stdin.readline():
        process = os.fork()
        if not process:
            _run(json.loads(line))
        print(process, flush=True)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        print(status, flush=True)


def _run(command: dict) -> None:
    """Becomes the command; never returns."""
    os.setsid()
    os.chdir(command["folder"])
    os.environ.clear()
    os.environ.update(command["environment"])
    nowhere = os.open(os.devnull, os.O_RDONLY)
    files = [os.open(command[name], os.O_WRONLY) for name in ("stdout", "stderr")]
    for number, file in enumerate((nowhere, *files)):
        os.dup2(file, number)
    # What `python -m` does, with the arguments where it puts them.
    sys.argv = [command["module"], *command["arguments"]]
    sys.path[0] = str(Path.cwd())
    status = 1
    try:
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
