"""Attacks the embedded server for a while, and counts what becomes of its honest clients.

    make soak                                    # 8 minutes, 64 clients; results/soak.csv
    python benchmarks/soak.py --seconds=3600     # the longest

Clients on both ports send an image each, think, and send again. First they are alone (`quiet`).
Then (`attacked`) one request of twenty is hostile, versions are published and the label is moved,
publishers are killed at work, the disk of the models (a tmpfs, where this process may mount one) is
filled. At first the server is killed and started again, too; then one lives to the end, whose
memory is noted. The model is small, so that it is the server that is measured; clients and server
share the machine. Hostile images are those of tests/hostile_images.py.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import machine
from absl import app, flags

from tfds_pap import commands

_SECONDS = flags.DEFINE_float(
    "seconds", 480.0, "Seconds, an hour at most (default: 480).", 10.0, 3600.0
)
_CLIENTS = flags.DEFINE_integer("clients", 64, "Clients at a time (default: 64).", 1, 1024)
_THINK = flags.DEFINE_float(
    "think_seconds", 2.0, "Mean seconds between two requests of a client (default: 2).", 0.0
)
_BESIDE = flags.DEFINE_string(
    "beside", "nothing", "What else runs on the machine, for the table (default: nothing)."
)
_CSV = flags.DEFINE_string("csv", "results/soak.csv", "Where to write (default: results/soak.csv).")


def main(argv: list[str]) -> None:
    """Soaks, prints the table and writes it."""
    del argv
    commands.prepare_tensorflow()
    # From here on `serving` is the package and not the script beside this one.
    sys.path[0] = str(Path(__file__).resolve().parents[1] / "tests")
    from soaking import Soak

    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        mounted = _mount(Path(folder))
        try:
            soak = Soak(Path(folder) / "pap_soak", clients=_CLIENTS.value, think=_THINK.value)
            soak.run(_SECONDS.value, progress=True)
        finally:
            if mounted:
                subprocess.run(["umount", "--lazy", folder], check=True)
    rows = [("disk", "tmpfs" if mounted else "not filled: no right to mount", "", "")]
    rows += soak.rows()
    for row in rows:
        print(*(f"{each!s:<44}" for each in row[:2]), *row[2:])
    beside = ("beside", _BESIDE.value, "", "")
    machine.write_rows(_CSV.value, ("part", "what", "count", "value"), [beside, *rows])
    if soak.broken():
        raise SystemExit("soak: honest requests failed that no kill explains")


def _mount(folder: Path) -> bool:
    """A disk that is soon full."""
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    return (
        shutil.which("mount") is not None
        and not subprocess.run(command, capture_output=True).returncode
    )


if __name__ == "__main__":
    app.run(main)
