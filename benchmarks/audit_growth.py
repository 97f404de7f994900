"""How the time and memory of the leak audit grow with the number of images.

    python benchmarks/audit_growth.py --counts=1000,10000,50000 --efforts=fast

Drawn crops, half of them twins of the other half by mixed changes, in one data set.
"""

import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parent))
import machine
import planted_crops

from replication.runs import device

_COUNTS = flags.DEFINE_list(
    "counts", ["1000", "10000", "50000"], "Numbers of images (default: 1000,10000,50000)."
)
_EFFORTS = flags.DEFINE_list("efforts", ["fast", "full"], "Which audits (default: fast,full).")
_CSV = flags.DEFINE_string("csv", None, "A CSV that rows are added to (default: none).")


def main(argv: list[str]) -> None:
    """Draws, audits, prints and writes."""
    del argv
    from tfds_pap import near_duplicates

    print(machine.describe())
    counts = sorted(int(count) for count in _COUNTS.value)
    folder = tempfile.TemporaryDirectory()
    pixels, structured = planted_crops.crops(counts[-1], Path(folder.name) / "crops.npy")
    rows = []
    for effort in _EFFORTS.value:
        for count in counts:
            processor, start = time.process_time(), time.perf_counter()
            matches = near_duplicates.find(pixels[:count], effort=effort)
            seconds, processor = time.perf_counter() - start, time.process_time() - processor
            share, others = planted_crops.found(matches, structured[: count // 2])
            rows.append(
                {"effort": effort, "images": count, "seconds": round(seconds, 1),
                 "processor_seconds": round(processor, 1),
                 "processor_milliseconds_an_image": round(1000 * processor / count, 1),
                 "peak_mib": round(device.peak_memory_mib()), "found": share,
                 "other_pairs": others}
            )  # fmt: skip
            print(*(f"{name} {value}" for name, value in rows[-1].items()), sep=", ", flush=True)
            machine.add_rows(_CSV.value, rows[-1:])


if __name__ == "__main__":
    app.run(main)
