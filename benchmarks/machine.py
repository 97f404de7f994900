"""Names the machine, so that no figure stands without it."""

import csv
import datetime
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from replication.runs import device, environment


def describe() -> str:
    """Returns one line: processor, cores, Python, TensorFlow, Keras, date."""
    installed = environment.versions()
    versions = ", ".join(f"{name} {installed[name]}" for name in ("tensorflow", "keras"))
    return (
        f"{device.processor()}, {os.cpu_count()} cores; Python {platform.python_version()}, "
        f"{versions}; {datetime.date.today()}"
    )


def about() -> dict[str, str]:
    """Returns what each row of a table says of its run: command, machine, commit, date.

    Folders that lie elsewhere are DIR in the command.
    """
    given = [re.sub(r"=(~|/|\.\./).*", "=DIR", argument) for argument in sys.argv[1:]]
    command = ["python", os.path.relpath(sys.argv[0]), *given]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "command": shlex.join(command),
        "machine": f"{device.processor()}, {os.cpu_count()} cores",
        "commit": commit or "unknown",
        "date": str(datetime.date.today()),
    }


def write_rows(path: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Writes a CSV anew, with what is `about` its rows and the versions of packages.

    Args:
        path: Of the CSV; what was there is gone.
        columns: Names of the values of a row.
        rows: The values.
    """
    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    versions = describe().rsplit("; ", 1)[0]
    known = {**about(), "machine": versions, "commit": environment.git_commit()}
    with place.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow([*columns, *known])
        table.writerows([*row, *known.values()] for row in rows)


def add_rows(path: str | None, rows: list[dict[str, object]]) -> None:
    """Adds rows to a CSV, with what is `about` them.

    Args:
        path: Of the CSV, which may be there; None writes nothing.
        rows: With equal columns.
    """
    if not path:
        return
    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    known = place.exists()
    rows = [{**row, **about()} for row in rows]
    with place.open("a", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        if not known:
            writer.writeheader()
        writer.writerows(rows)
