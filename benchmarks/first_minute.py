"""How long a first answer takes: help, a wrong flag, a wrong path, a server that is not there.

    python benchmarks/first_minute.py --csv=results/first_minute.csv

Each line is typed as a user types it, in a process of its own and an empty folder, several times;
the table has the least wall time, and the processor time of that one, which other work beside it
changes little.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parent))
import machine

_REPEATS = flags.DEFINE_integer("repeats", 3, "Times that each line is typed (default: 3).", 1)
_CSV = flags.DEFINE_string("csv", None, "A CSV that rows are added to (default: none).")

_COMMANDS = (
    *("run", "compare", "search", "train", "predict", "scan", "sweep", "audit", "phantom"),
    *("export", "serve", "labels", "deploy", "doctor"),
)
#: What is asked, and lines that ask it; NONE is not there, and nobody listens at port 1.
LINES = {
    "help": ["--help", "run --help"],
    "wrong flag": [f"{command} --nonsense" for command in _COMMANDS],
    "wrong path": [
        "run --manual_dir=NONE",
        "compare --folders=NONE",
        "compare --weights=NONE",
        "search --manual_dir=NONE",
        "search --space=NONE.py",
        "train --from_search=NONE",
        "predict --run_dir=NONE cell.jpg",
        "scan --stage1=NONE --stage2=NONE field.jpg",
        "audit --folders=NONE",
        "export --run_dir=NONE --serving_dir=models",
        "serve --serving_dir=NONE",
        "labels --serving_dir=NONE",
        "deploy --serving_dir=NONE",
        "doctor --manual_dir=NONE",
        "predict --server=localhost:1 NONE.jpg",
    ],
    "connection refused": [
        "predict --server=localhost:1 cell.jpg",
        "predict --rest --server=localhost:1 cell.jpg",
    ],
}


def main(argv: list[str]) -> None:
    """Types every line, prints and writes."""
    del argv
    print(machine.describe())
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "cell.jpg").write_bytes(b"no image is read before the server is asked")
        for asked, lines in LINES.items():
            for line in lines:
                seconds, processor, status, said = min(
                    _typed(line, folder) for _ in range(_REPEATS.value)
                )
                print(f"{asked:<20} pap {line:<50} {seconds:6.2f} s {processor:6.2f} s  {said}")
                rows.append(
                    {
                        "asked": asked,
                        "line": f"pap {line}",
                        "seconds": round(seconds, 2),
                        "processor_seconds": round(processor, 2),
                        "exit_status": status,
                    }
                )
    machine.add_rows(_CSV.value, rows)


def _typed(line: str, folder: str) -> tuple[float, float, int, str]:
    """Wall and processor seconds, exit status and the last line of the answer."""
    root = Path(__file__).resolve().parents[1]
    environment = os.environ | {"PYTHONPATH": str(root)}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "replication.pap", *line.split()],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        check=False,
    )
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    last = ((done.stderr or done.stdout).strip().splitlines() or [""])[-1]
    return seconds, processor, done.returncode, last[:100]


if __name__ == "__main__":
    app.run(main)
