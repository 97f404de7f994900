"""Runs a command of the package as a user types it."""

import subprocess
import sys


def command(module, *arguments, timeout=280, **options):
    """Returns the finished process of `python -m module arguments`."""
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        **options,
    )
