"""Kills commands at random, resumes them, and says whether they end as if nothing had happened.

    make soak                                         # after the attack on the server
    python benchmarks/faults.py --kills=50            # results/faults.csv

Each command of tests/faulting.py is killed (SIGKILL, with its children) at a moment that the seed
draws between its start and the time that it takes undisturbed; the same command follows until it
ends. What it found must be what the undisturbed command found, file by file (tests/outcomes.py
says what counts). Images are drawn and few. A command is forked from a process that has imported
TensorFlow, so that kills meet its work and not the import.
"""

import sys
import tempfile
from pathlib import Path

import machine
from absl import app, flags

from tfds_pap import commands

_KILLS = flags.DEFINE_integer("kills", 50, "Kills, over all commands (default: 50).", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the moments (default: 0).", lower_bound=0)
_BESIDE = flags.DEFINE_string(
    "beside", "nothing", "What else runs on the machine, for the table (default: nothing)."
)
_CSV = flags.DEFINE_string(
    "csv", "results/faults.csv", "Where to write (default: results/faults.csv)."
)

_COLUMNS = ("module", "kills", "resumes", "undisturbed_seconds", "lost_seconds", "equal", "beside")


def main(argv: list[str]) -> None:
    """Kills, prints the table and writes it."""
    del argv
    commands.prepare_tensorflow()
    sys.path[0] = str(Path(__file__).resolve().parents[1] / "tests")
    import faulting

    rows, differing = [], []
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        place = faulting.Workplace(folder, seed=_SEED.value)
        names = list(faulting.COMMANDS)
        for number, name in enumerate(names):
            kills = len(range(number, _KILLS.value, len(names)))
            killed = place.killed(name, kills) if kills else None
            if killed is None:
                continue
            differing += killed.differing
            equal = "yes" if not killed.differing else "no"
            seconds = (round(killed.undisturbed), round(killed.lost))
            rows.append((name, killed.kills, killed.resumes, *seconds, equal, _BESIDE.value))
            print(*(f"{each!s:<22}" for each in rows[-1]), *killed.differing, flush=True)
            # Whoever stops it here has what was measured.
            machine.write_rows(_CSV.value, _COLUMNS, rows)
    if differing:
        raise SystemExit(f"faults: {len(differing)} files differ from an undisturbed command's")


if __name__ == "__main__":
    app.run(main)
