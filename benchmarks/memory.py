"""Whether a run stays within the memory that --dry_run prints, also at ten times the images.

    python benchmarks/memory.py --csv=results/memory.csv

Stage 2 on drawn images of 150 px, trained for one epoch with both protocols: `pap run --dry_run`
says what it takes at most, then the run is made, and the most that its process held is read from
the system. The images of the second row are ten times those of the first.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from absl import app, flags

# Run as a script, Python puts this folder on the path; as a module, its parent.
sys.path.insert(0, str(Path(__file__).resolve().parent))
import machine

_IMAGES = flags.DEFINE_integer(
    "images", 200, "Images of the smaller set (default: 200).", lower_bound=40
)
_TIMES = flags.DEFINE_integer("times", 10, "By which the larger has more (default: 10).")
_CSV = flags.DEFINE_string("csv", None, "A CSV that rows are added to (default: none).")

#: `dry_run.size` writes decimal units.
_UNITS = {"MB": 1e6, "GB": 1e9}


def main(argv: list[str]) -> None:
    """Asks, runs, compares; ends with status 1 where more was held than was said."""
    del argv
    from tfds_pap import phantom_set

    print(machine.describe())
    rows = []
    for images in (_IMAGES.value, _IMAGES.value * _TIMES.value):
        with tempfile.TemporaryDirectory() as folder:
            validation = images // 20
            counts = {"train": images // 4 - validation, "validation": validation}
            phantom_set.write_tree(Path(folder), db3={}, db4=counts)
            command = [
                sys.executable, "-m", "replication.run", f"--manual_dir={folder}",
                "--images=stand-in", f"--data_dir={folder}/tfds", f"--run_dir={folder}/run",
                "--stages=2", "--epochs=1", "--audit=off", "--scan_fields=0",
            ]  # fmt: skip
            said = re.search(
                r"Memory: at most about ([\d.]+) ([MG]B)", _output([*command, "--dry_run"])
            )
            assert said, "--dry_run tells no memory"
            budget = float(said[1]) * _UNITS[said[2]]
            held = _peak(command)
        rows.append(
            {
                "images": images,
                "printed_mb": round(budget / 1e6),
                "held_mb": round(held / 1e6),
                "within": "yes" if held <= budget else "no",
            }
        )
        print(*(f"{name} {value}" for name, value in rows[-1].items()), sep=", ", flush=True)
    machine.add_rows(_CSV.value, rows)
    if any(row["within"] == "no" for row in rows):
        raise SystemExit("memory: more was held than --dry_run says")


def _output(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _peak(command: list[str]) -> int:
    """Runs a command and returns the most bytes that its process held."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"memory: the run ended with status {process.returncode}")
    # macOS counts bytes, Linux kibibytes.
    return used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    app.run(main)
